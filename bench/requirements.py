"""What the project requires of the engine on a CPU, as checks over a report. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.results import Report, ServerReport
from bench.scenarios import random_load
from bench.servers import OURS

# rate against vLLM by concurrency, output tokens per second
RATE_OVER_VLLM = {1: 1.4, 8: 1.4, 32: 1.5}
PREFILL_OVER_LLAMA_CPP = 3.0
CACHED_OVER_COLD = 0.15
READY_SECONDS = 5.0
OVERHEAD_BYTES = 600e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One requirement. `is_met` is None where this run did not measure it."""

    text: str
    measured: str
    is_met: bool | None


def check_requirements(report: Report) -> list[Check]:
    """Every requirement, in the order of the project's list."""
    ours = report.servers.get(OURS)
    if ours is None or ours.unavailable is not None:
        reason = "not in this run" if ours is None else ours.unavailable
        return [Check(text=f"{OURS} was measured", measured=str(reason), is_met=None if ours is None else False)]
    checks = [_rate_check(report, concurrency, factor) for concurrency, factor in RATE_OVER_VLLM.items()]
    checks.append(
        _ratio_check(
            f"prefill at least {PREFILL_OVER_LLAMA_CPP} x llama.cpp",
            ours.prefill_tokens_per_second,
            _value(report, "llama.cpp", lambda server: server.prefill_tokens_per_second),
            lambda ratio: ratio >= PREFILL_OVER_LLAMA_CPP,
        )
    )
    checks.append(
        _ratio_check(
            f"a cached prompt answers first in at most {CACHED_OVER_COLD:.0%} of cold",
            ours.cached_ttft_seconds,
            ours.cold_ttft_seconds,
            lambda ratio: ratio <= CACHED_OVER_COLD,
        )
    )
    return [*checks, *_own_checks(report, ours)]


def _own_checks(report: Report, ours: ServerReport) -> list[Check]:
    failed = sum(load.failed for load in ours.loads.values())
    kv_bytes = report.kv_cache_bytes
    # The cache is resident once written: an idle server holds none of it, a loaded one at most all of it.
    idle = None if ours.idle_bytes is None else ours.idle_bytes - report.facts.weights_bytes
    peak = None if ours.peak_bytes is None else ours.peak_bytes - report.facts.weights_bytes - kv_bytes
    return [
        Check(text="no failed request", measured=f"{failed} failed", is_met=failed == 0),
        _limit_check(f"ready in at most {READY_SECONDS} s", ours.ready_seconds, READY_SECONDS, unit="s", scale=1),
        _limit_check("idle: weights + 600 MB", idle, OVERHEAD_BYTES, unit="MB over the weights", scale=1e6),
        _limit_check("peak: weights + KV + 600 MB", peak, OVERHEAD_BYTES, unit="MB over weights and KV", scale=1e6),
    ]


def _rate_check(report: Report, concurrency: int, factor: float) -> Check:
    name = random_load(concurrency).name

    def rate(server: ServerReport) -> float | None:
        load = server.loads.get(name)
        return None if load is None else load.output_tokens_per_second

    return _ratio_check(
        f"{name}: at least {factor} x vllm",
        _value(report, OURS, rate),
        _value(report, "vllm", rate),
        lambda ratio: ratio >= factor,
    )


def _ratio_check(text: str, ours: float | None, other: float | None, is_met: Callable[[float], bool]) -> Check:
    if ours is None or not other:
        return Check(text=text, measured="not measured", is_met=None)
    return Check(text=text, measured=f"{ours / other:.2f}", is_met=is_met(ours / other))


def _limit_check(text: str, value: float | None, limit: float, *, unit: str, scale: float) -> Check:
    if value is None:
        return Check(text=text, measured="not measured", is_met=None)
    return Check(text=text, measured=f"{value / scale:.1f} {unit}", is_met=value <= limit)


def _value(report: Report, name: str, read: Callable[[ServerReport], float | None]) -> float | None:
    server = report.servers.get(name)
    return None if server is None else read(server)
