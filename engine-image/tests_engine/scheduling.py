"""Helpers of the scheduler's tests: requests, and a driver that runs plans in order, some steps late."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

from modelfleet_engine.request import FinishReason, GenerationRequest
from modelfleet_engine.scheduler import PlannedStep, Scheduler, SchedulerLimits
from modelfleet_engine.step_plan import SamplingParameters, TokenLogprobs

from tests_engine.paged_memory import HashModel, PagedMemory

VOCAB_SIZE = 50
MODEL = HashModel(vocab_size=VOCAB_SIZE)


def limits(**values: Any) -> SchedulerLimits:
    """Small limits, so that every one of them is met; `seqs` and `batched_tokens` for short."""
    for short, name in (("seqs", "max_num_seqs"), ("batched_tokens", "max_num_batched_tokens")):
        if short in values:
            values[name] = values.pop(short)
    small = SchedulerLimits(max_num_seqs=8, max_num_batched_tokens=32, max_model_len=128, kv_blocks=64, block_tokens=4)
    return replace(small, **values)


def request(name: str, *, prompt: tuple[int, ...] = (1, 2, 3), max_tokens: int = 8, **values: Any) -> GenerationRequest:
    """A greedy request; `values` are any other fields of `GenerationRequest`."""
    values.setdefault("sampling", SamplingParameters(temperature=0.0))
    return GenerationRequest(request_id=name, prompt_token_ids=prompt, max_tokens=max_tokens, **values)


class Driver:
    """Runs a scheduler against paged memory. Results come back only when `depth` steps are in flight."""

    def __init__(self, scheduler: Scheduler, *, depth: int = 2) -> None:
        self.scheduler = scheduler
        self._depth = depth
        self.memory = PagedMemory(
            model=MODEL,
            vocab_size=VOCAB_SIZE,
            kv_blocks=scheduler.limits.kv_blocks,
            block_tokens=scheduler.limits.block_tokens,
        )
        self._in_flight: deque[PlannedStep] = deque()
        self.plans: list[PlannedStep] = []
        self.tokens: dict[str, list[int]] = {}
        self.finished: dict[str, FinishReason] = {}
        self.prompt_logprobs: dict[str, list[TokenLogprobs]] = {}
        self.resident: set[str] = set()
        self.now_seconds = 0.0

    def turn(self) -> None:
        """One turn of the engine's loop: plan and submit, then take the oldest result if it is due."""
        planned = self.scheduler.plan_step(self.now_seconds)
        self.finished.update(self.scheduler.take_ended())
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

    def rows_of(self, request_id: str) -> list[tuple[int, int]]:
        """Every row planned for a request so far: (start position, computed tokens)."""
        return [
            (row.start_position, row.computed_tokens)
            for planned in self.plans
            for row, sequence in zip(planned.plan.sequences, planned.sequences, strict=True)
            if sequence.request.request_id == request_id
        ]

    def cached_tokens(self) -> dict[str, int]:
        """What each admitted request found in the prefix cache."""
        return {
            admission.request_id: admission.cached_tokens for planned in self.plans for admission in planned.admitted
        }

    def _complete(self) -> None:
        # The device computes when the result is asked for; in order, as the contract says.
        outputs = self.scheduler.complete_step(self.memory.run(self._in_flight.popleft().plan))
        for request_id, token_id in zip(outputs.request_ids, outputs.token_ids, strict=True):
            assert request_id not in self.finished, "a token after the last one"
            self.tokens.setdefault(request_id, []).append(token_id)
        for request_id, logprobs in outputs.prompt_logprobs.items():
            self.prompt_logprobs.setdefault(request_id, []).extend(logprobs)
        self.finished.update(outputs.finish_reasons)
        if (events := self.scheduler.take_kv_events()) is not None:
            assert self.resident.isdisjoint(events.stored)
            assert self.resident.issuperset(events.evicted)
            self.resident.update(events.stored)
            self.resident.difference_update(events.evicted)
