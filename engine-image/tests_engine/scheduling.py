"""Helpers of the scheduler's tests: requests, and a driver that runs plans in order, some steps late."""

from __future__ import annotations

from collections import deque

from modelfleet_engine.request import FinishReason, GenerationRequest
from modelfleet_engine.scheduler import PlannedStep, Scheduler, SchedulerLimits
from modelfleet_engine.step_plan import SamplingParameters, StepResult

from tests_engine.fake_device import HashModel, PagedMemory

VOCAB_SIZE = 50
MODEL = HashModel(vocab_size=VOCAB_SIZE)


def limits(
    *, seqs: int = 8, batched_tokens: int = 32, kv_blocks: int = 64, block_tokens: int = 4, max_model_len: int = 128
) -> SchedulerLimits:
    """Small limits, so that every one of them is met."""
    return SchedulerLimits(
        max_num_seqs=seqs,
        max_num_batched_tokens=batched_tokens,
        max_model_len=max_model_len,
        kv_blocks=kv_blocks,
        block_tokens=block_tokens,
    )


def request(
    name: str,
    *,
    prompt: tuple[int, ...] = (1, 2, 3),
    max_tokens: int = 8,
    min_tokens: int = 0,
    stop_token_ids: frozenset[int] = frozenset(),
) -> GenerationRequest:
    """A greedy request."""
    return GenerationRequest(
        request_id=name,
        prompt_token_ids=prompt,
        sampling=SamplingParameters(temperature=0.0),
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        stop_token_ids=stop_token_ids,
    )


class Driver:
    """Runs a scheduler against paged memory. Results come back only when `depth` steps are in flight."""

    def __init__(self, scheduler: Scheduler, *, depth: int = 2) -> None:
        self.scheduler = scheduler
        self._depth = depth
        self._memory = PagedMemory(
            model=MODEL,
            vocab_size=VOCAB_SIZE,
            kv_blocks=scheduler.limits.kv_blocks,
            block_tokens=scheduler.limits.block_tokens,
        )
        self._in_flight: deque[PlannedStep] = deque()
        self.plans: list[PlannedStep] = []
        self.tokens: dict[str, list[int]] = {}
        self.finished: dict[str, FinishReason] = {}

    def turn(self) -> None:
        """One turn of the engine's loop: plan and submit, then take the oldest result if it is due."""
        planned = self.scheduler.plan_step()
        if planned is not None:
            self.plans.append(planned)
            self._in_flight.append(planned)
        if len(self._in_flight) >= self._depth or (planned is None and self._in_flight):
            self._complete()

    def run(self, *, turns: int = 10_000) -> None:
        """Turns until all is done. Fails if that takes more than `turns`."""
        for _ in range(turns):
            if not self.scheduler.has_work:
                return
            self.turn()
        raise AssertionError(f"not done after {turns} turns: {self.scheduler.stats()}")

    def _complete(self) -> None:
        plan = self._in_flight.popleft().plan
        # The device computes when the result is asked for; in order, as the contract says.
        result = StepResult(step_id=plan.step_id, sampled_token_ids=self._memory.run(plan), busy_seconds=0.0)
        outputs = self.scheduler.complete_step(result)
        for request_id, token_id in zip(outputs.request_ids, outputs.token_ids, strict=True):
            assert request_id not in self.finished, "a token after the last one"
            self.tokens.setdefault(request_id, []).append(token_id)
        self.finished.update(outputs.finish_reasons)
