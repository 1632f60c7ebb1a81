"""Plain counts and histograms of what the gateway does: cheap to add to, read by metrics and by the demand report."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from modelfleet_api.protocol import HistogramSnapshot

FIRST_TOKEN_BOUNDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0)
TOKEN_GAP_BOUNDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 10.0)
DECISION_BOUNDS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 5e-3, 2e-2)


class Histogram:
    """Values counted by bucket; `counts[i]` are in (bounds[i-1], bounds[i]], the last above all bounds."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """One value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def snapshot(self) -> HistogramSnapshot:
        """As the protocol has it."""
        return HistogramSnapshot(upper_bounds=self.bounds, counts=tuple(self.counts), sum=self.sum)


@dataclass(slots=True)
class ModelStatistics:
    """What one model's requests have done since the start of the gateway."""

    arrivals: int = 0
    prompt_tokens: float = 0.0
    cached_tokens: float = 0.0
    completion_tokens: float = 0.0
    held: int = 0
    retries: int = 0
    cut_streams: int = 0
    first_token_seconds: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_BOUNDS))
    token_gap_seconds: Histogram = field(default_factory=lambda: Histogram(TOKEN_GAP_BOUNDS))


@dataclass(slots=True)
class GatewayStatistics:
    """What the whole gateway has done. `requests` counts by (model, tenant, status)."""

    # Names come from users; what is beyond this many is counted together.
    max_series: int = 2000
    requests: dict[tuple[str, str, int], int] = field(default_factory=dict)
    decision_seconds: Histogram = field(default_factory=lambda: Histogram(DECISION_BOUNDS))

    def count_request(self, *, model: str, tenant: str, status: int) -> None:
        """One finished request."""
        key = (model, tenant, status)
        if key not in self.requests and len(self.requests) >= self.max_series:
            key = ("other", "other", status)
        self.requests[key] = self.requests.get(key, 0) + 1
