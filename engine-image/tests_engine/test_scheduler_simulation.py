"""The scheduler without an engine: a simulator with a clock of its own and a learned step time, no thread, no device.

This is how the control plane can ask "what would this replica do": plan, add the predicted seconds, complete.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from modelfleet_api.protocol import StepTime
from modelfleet_engine.request import GenerationRequest
from modelfleet_engine.scheduler import Scheduler
from modelfleet_engine.step_plan import StepResult
from modelfleet_engine.step_time import predict_seconds

from tests_engine.scheduling import limits, request

# About SmolLM2-135M on two cores.
STEP_TIME = StepTime(
    base_seconds=0.018,
    per_sequence_seconds=0.0008,
    per_prefill_token_seconds=0.00075,
    per_kv_token_seconds=0.0000008,
    observed_steps=1000,
)


@dataclass
class Simulation:
    """Requests by arrival time, and when each token came."""

    scheduler: Scheduler
    arrivals: dict[float, GenerationRequest]
    now_seconds: float = 0.0
    token_seconds: dict[str, list[float]] = field(default_factory=dict)

    def run(self) -> None:
        """Until every request that arrives has ended."""
        waiting = sorted(self.arrivals.items(), reverse=True)
        while waiting or self.scheduler.has_work:
            if not self.scheduler.has_work:
                self.now_seconds = max(self.now_seconds, waiting[-1][0])
            while waiting and waiting[-1][0] <= self.now_seconds:
                self.scheduler.add(waiting.pop()[1])
            self._step()

    def _step(self) -> None:
        planned = self.scheduler.plan_step(self.now_seconds)
        if planned is None:
            return
        seconds = predict_seconds(
            STEP_TIME,
            sequences=len(planned.sequences),
            prefill_tokens=planned.prefill_tokens,
            kv_tokens=planned.kv_tokens,
        )
        self.now_seconds += seconds
        tokens = tuple(None if row.sampling is None else 0 for row in planned.plan.sequences)
        outputs = self.scheduler.complete_step(
            StepResult(step_id=planned.plan.step_id, sampled_token_ids=tokens, busy_seconds=seconds)
        )
        for request_id in outputs.request_ids:
            self.token_seconds.setdefault(request_id, []).append(self.now_seconds)


def _simulation(*, itl_target_seconds: float | None) -> Simulation:
    scheduler = Scheduler(
        limits(
            batched_tokens=512,
            kv_blocks=600,
            block_tokens=16,
            max_model_len=4096,
            itl_target_seconds=itl_target_seconds,
        )
    )
    scheduler.step_time = STEP_TIME
    arrivals = {
        0.0: request("streams", prompt=(1,) * 32, max_tokens=200),
        1.0: request("long", prompt=tuple(range(2000)), max_tokens=4),
    }
    return Simulation(scheduler, arrivals)


def _longest_gap(seconds: list[float]) -> float:
    return max(later - earlier for earlier, later in pairwise(seconds))


def test_a_long_prompt_holds_a_stream_up_unless_there_is_a_target() -> None:
    without, with_target = _simulation(itl_target_seconds=None), _simulation(itl_target_seconds=0.1)
    without.run()
    with_target.run()

    # 511 prompt tokens beside the decode, against as many as fit into 100 ms.
    assert _longest_gap(without.token_seconds["streams"]) == pytest.approx(0.405, abs=0.005)
    assert 0.095 < _longest_gap(with_target.token_seconds["streams"]) <= 0.1
    # What it costs the long prompt is told too: one forward pass per chunk.
    assert without.token_seconds["long"][0] < with_target.token_seconds["long"][0] < 3.1


def test_the_same_arrivals_give_the_same_times() -> None:
    first, second = _simulation(itl_target_seconds=0.1), _simulation(itl_target_seconds=0.1)
    first.run()
    second.run()

    assert first.token_seconds == second.token_seconds
    assert {name: len(seconds) for name, seconds in first.token_seconds.items()} == {"streams": 200, "long": 4}
