"""Single steps of the model runner with real weights, without scheduler and server: `python -m bench.step [--profile]`.

Tells what a step costs and where its time goes; the server's rates (`bench.engine`) can only be lower. Cases are
interleaved, so that a disturbance hits all of them, and the median counts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelfleet_api.engine_config import EngineConfig
from modelfleet_engine.step_plan import SamplingParameters, ScheduledSequence, StepPlan

from bench.prompts import random_prompts
from e2e.demo_model import demo_model_path

if TYPE_CHECKING:
    from modelfleet_engine.model_runner import ModelRunner

BLOCK_TOKENS = 16
_GREEDY = SamplingParameters(temperature=0.0)
_PROFILED_OPS = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One step: `decodes` rows of one token after `context_tokens`, and one prompt chunk of `prefill_tokens`."""

    decodes: int = 0
    context_tokens: int = 256
    prefill_tokens: int = 0

    @property
    def name(self) -> str:
        """For the table."""
        parts = [f"decode {self.decodes} x {self.context_tokens}"] if self.decodes else []
        parts += [f"prefill {self.prefill_tokens}"] if self.prefill_tokens else []
        return " + ".join(parts)

    @property
    def tokens(self) -> int:
        """Computed in the step."""
        return self.decodes + self.prefill_tokens

    def plan(self) -> StepPlan:
        """Every row with blocks of its own."""
        rows = [_row(slot, start=self.context_tokens, count=1) for slot in range(self.decodes)]
        if self.prefill_tokens:
            rows.append(_row(self.decodes, start=0, count=self.prefill_tokens))
        return StepPlan(step_id=0, sequences=tuple(rows))


CASES = (
    Case(decodes=1),
    Case(decodes=8),
    Case(decodes=32),
    Case(decodes=64),
    Case(prefill_tokens=256),
    Case(prefill_tokens=512),
    Case(decodes=7, prefill_tokens=256),
    Case(decodes=31, prefill_tokens=256),
)
# Blocks of one row: the longest context and chunk with room.
_BLOCKS_PER_ROW = 64


def _row(slot: int, *, start: int, count: int) -> ScheduledSequence:
    (token_ids,) = random_prompts(seed=slot, count=1, tokens=count)
    first = slot * _BLOCKS_PER_ROW
    return ScheduledSequence(
        slot=slot,
        token_ids=token_ids,
        input_from_previous_step=False,
        start_position=start,
        block_table=tuple(range(first, first - (-(start + count) // BLOCK_TOKENS))),
        sampling=_GREEDY,
    )


def measure(runner: ModelRunner, *, repetitions: int) -> dict[Case, float]:
    """The median seconds of each case."""
    plans = {case: case.plan() for case in CASES}
    for plan in plans.values():
        runner.run(plan)
    seconds: dict[Case, list[float]] = defaultdict(list)
    for _ in range(repetitions):
        for case, plan in plans.items():
            started = time.perf_counter()
            runner.run(plan)
            seconds[case].append(time.perf_counter() - started)
    return {case: statistics.median(taken) for case, taken in seconds.items()}


def profile(runner: ModelRunner, case: Case, *, repetitions: int = 5) -> str:
    """Where the case's time goes, by torch's own operators; `host` is what no operator accounts for."""
    import torch

    plan = case.plan()
    runner.run(plan)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        started = time.perf_counter()
        for _ in range(repetitions):
            runner.run(plan)
        wall_ms = (time.perf_counter() - started) * 1e3 / repetitions
    events = sorted(recorded.key_averages(), key=lambda event: -event.self_cpu_time_total)
    operators_ms = sum(event.self_cpu_time_total for event in events) / 1e3 / repetitions
    lines = [f"{case.name}: {wall_ms:.2f} ms profiled, host {wall_ms - operators_ms:.2f} ms"]
    lines += [
        f"  {event.self_cpu_time_total / 1e3 / repetitions:8.2f} ms {event.count / repetitions:7.0f} x  {event.key}"
        for event in events[:_PROFILED_OPS]
    ]
    return "\n".join(lines)


def main() -> int:
    """Loads the demo model, measures, prints."""
    parser = argparse.ArgumentParser(prog="python -m bench.step", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=20, help="of each case (default: %(default)s)")
    parser.add_argument("--profile", action="store_true", help="also say which operators take the time")
    arguments = parser.parse_args()
    # As the engine sets it before torch is loaded; modelfleet_engine.device says why.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from modelfleet_engine.model_loader import load_runner

    config = EngineConfig(
        model_path=str(demo_model_path()),
        served_model_name="demo",
        dtype="bfloat16",
        max_num_seqs=max(case.decodes for case in CASES) + 1,
        kv_cache_bytes=2 << 30,
    )
    runner = load_runner(config).runner
    for case, seconds in measure(runner, repetitions=arguments.repetitions).items():
        print(f"{case.name:28} {seconds * 1e3:8.2f} ms {case.tokens / seconds:8.0f} tok/s")
    if arguments.profile:
        for case in CASES:
            print(profile(runner, case))
    return 0


if __name__ == "__main__":
    sys.exit(main())
