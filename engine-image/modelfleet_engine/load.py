"""What one engine knows about its own load: histograms and counters. The learned step time is in `step_time`.

Pure (no clock, no I/O): times are arguments. `metrics.py` shows it to Prometheus, `GET /load` to the fleet.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from modelfleet_api.protocol import HistogramSnapshot

from modelfleet_engine.request import FinishReason

# Upper bounds in seconds; vLLM's own edges where they matter for a CPU or a GPU engine.
TTFT_BOUNDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
ITL_BOUNDS = (
    0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
DURATION_BOUNDS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
TOKEN_BOUNDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


class Histogram:
    """Counts per bucket of values seen so far. A value equal to a bound belongs to that bound's bucket."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        # One more than bounds: the last one is "above all".
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Adds one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def mean(self) -> float | None:
        """Of all values so far; None before the first."""
        count = sum(self.counts)
        return self.total / count if count else None

    def snapshot(self) -> HistogramSnapshot:
        """A frozen copy for the wire: counts are per bucket, not cumulative."""
        return HistogramSnapshot(upper_bounds=self.bounds, counts=tuple(self.counts), sum=self.total)


@dataclass(slots=True)
class RequestCounts:
    """What has happened to requests since the start; all cumulative. Owned by the event loop's thread."""

    finished: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    cut: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    time_to_first_token: Histogram = field(default_factory=lambda: Histogram(TTFT_BOUNDS))
    inter_token_latency: Histogram = field(default_factory=lambda: Histogram(ITL_BOUNDS))
    queue_time: Histogram = field(default_factory=lambda: Histogram(TTFT_BOUNDS))
    duration: Histogram = field(default_factory=lambda: Histogram(DURATION_BOUNDS))
    prompt_lengths: Histogram = field(default_factory=lambda: Histogram(TOKEN_BOUNDS))
    output_lengths: Histogram = field(default_factory=lambda: Histogram(TOKEN_BOUNDS))

    def count_finished(self, reason: FinishReason, *, generated_tokens: int) -> None:
        """One more sequence that ended for `reason`.

        One that was given up before its first token says nothing of how long answers are.
        """
        self.finished[reason.value] = self.finished.get(reason.value, 0) + 1
        if generated_tokens or reason in (FinishReason.STOP, FinishReason.LENGTH):
            self.output_lengths.observe(generated_tokens)

    def count_refused(self, reason: str) -> None:
        """One more request that was not admitted for `reason`."""
        self.refused[reason] = self.refused.get(reason, 0) + 1

    @property
    def total_finished(self) -> int:
        return sum(self.finished.values())
