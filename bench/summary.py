"""From request records to the numbers of a table: pure."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.load_job import RequestRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSummary:
    """One server under one load. Latencies over all requests that did not fail; None where there is none."""

    requests: int
    failed: int
    first_failure: str | None
    wall_seconds: float
    output_tokens_per_second: float
    cached_tokens: int
    prompt_tokens: int
    ttft_p50_seconds: float | None
    ttft_p99_seconds: float | None
    itl_p50_seconds: float | None
    itl_p99_seconds: float | None
    # Time per output token after the first, the median over requests: unlike ITL it does not depend on how many
    # tokens a server puts into one chunk.
    tpot_p50_seconds: float | None


def percentile(values: Sequence[float], fraction: float) -> float | None:
    """The value at `fraction` (0-1) of the sorted values, linear between neighbours; None if empty."""
    if not values:
        return None
    ordered = sorted(values)
    position = (len(ordered) - 1) * fraction
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def time_to_first_token(record: RequestRecord) -> float:
    """Seconds from sending to the first text."""
    return record.arrivals_seconds[0] - record.sent_seconds


def summarize(records: Sequence[RequestRecord]) -> LoadSummary:
    """One job's summary. The wall time runs from the job's start to its last answer, ramp up and down included."""
    answered = [record for record in records if record.failure is None]
    failures = [record.failure for record in records if record.failure is not None]
    wall_seconds = max((record.finished_seconds for record in records), default=0.0)
    first_tokens = [time_to_first_token(record) for record in answered]
    gaps = [gap for record in answered for gap in _gaps(record)]
    tokens = sum(record.completion_tokens for record in answered)
    return LoadSummary(
        requests=len(records),
        failed=len(failures),
        first_failure=failures[0] if failures else None,
        wall_seconds=wall_seconds,
        output_tokens_per_second=tokens / wall_seconds if wall_seconds else 0.0,
        cached_tokens=sum(record.cached_tokens for record in answered),
        prompt_tokens=sum(record.prompt_tokens for record in answered),
        ttft_p50_seconds=percentile(first_tokens, 0.5),
        ttft_p99_seconds=percentile(first_tokens, 0.99),
        itl_p50_seconds=percentile(gaps, 0.5),
        itl_p99_seconds=percentile(gaps, 0.99),
        tpot_p50_seconds=percentile([_seconds_per_token(record) for record in answered], 0.5),
    )


def median_summary(rounds: Sequence[LoadSummary]) -> LoadSummary:
    """The round whose rate is the median (the lower one of two); failures of all rounds are counted."""
    chosen = sorted(rounds, key=lambda each: each.output_tokens_per_second)[(len(rounds) - 1) // 2]
    return dataclasses.replace(
        chosen,
        requests=sum(each.requests for each in rounds),
        failed=sum(each.failed for each in rounds),
        first_failure=next((each.first_failure for each in rounds if each.first_failure), None),
    )


def median(values: Sequence[float]) -> float | None:
    """The median; None if empty."""
    return statistics.median(values) if values else None


def _gaps(record: RequestRecord) -> list[float]:
    arrivals = record.arrivals_seconds
    return [later - earlier for earlier, later in itertools.pairwise(arrivals)]


def _seconds_per_token(record: RequestRecord) -> float:
    return (record.arrivals_seconds[-1] - record.arrivals_seconds[0]) / max(1, record.completion_tokens - 1)
