"""A deterministic asynchronous device without torch: it computes on its own thread, through `PagedMemory`."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from queue import SimpleQueue

from modelfleet_engine.step_plan import StepPlan, StepResult

from tests_engine.paged_memory import HashModel, NextToken, PagedMemory, expected_tokens, token_logprobs

__all__ = ["FakeDevice", "HashModel", "NextToken", "PagedMemory", "expected_tokens", "token_logprobs"]


@dataclass
class FakeDevice:
    """Implements `step_plan.Device` with a worker thread and a fixed time per step.

    `events` records ("submit", step) and ("wait", step) in the order the host made them. `gate`, if given, is
    waited for before each step computes. `fail_at_step` raises there, `hang_at_step` never ends.
    """

    model: NextToken
    vocab_size: int
    kv_blocks: int
    block_tokens: int
    step_seconds: float = 0.0
    gate: threading.Event | None = None
    fail_at_step: int | None = None
    hang_at_step: int | None = None
    failure: Exception = field(default_factory=lambda: RuntimeError("the fake device broke"))
    events: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._memory = PagedMemory(
            model=self.model, vocab_size=self.vocab_size, kv_blocks=self.kv_blocks, block_tokens=self.block_tokens
        )
        self._plans: SimpleQueue[StepPlan | None] = SimpleQueue()
        self._results: SimpleQueue[StepResult | Exception] = SimpleQueue()
        self._waited = 0
        self._submitted: list[int] = []
        self._thread = threading.Thread(target=self._work, name="fake-device", daemon=True)
        self._thread.start()

    def submit(self, plan: StepPlan) -> None:
        """Queues one step and returns at once."""
        assert plan.sequences, "a plan is never empty"
        self.events.append(("submit", plan.step_id))
        self._submitted.append(plan.step_id)
        self._plans.put(plan)

    def wait(self) -> StepResult:
        """The oldest step's result, or its error."""
        self.events.append(("wait", self._submitted[self._waited]))
        self._waited += 1
        result = self._results.get()
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        """Ends the worker."""
        self._plans.put(None)

    def _work(self) -> None:
        while (plan := self._plans.get()) is not None:
            if self.gate is not None:
                self.gate.wait()
            if plan.step_id == self.hang_at_step:
                threading.Event().wait()
            started = time.monotonic()
            if self.step_seconds:
                time.sleep(self.step_seconds)
            try:
                if plan.step_id == self.fail_at_step:
                    raise self.failure
                result = self._memory.run(plan)
            except Exception as error:
                self._results.put(error)
                continue
            self._results.put(replace(result, busy_seconds=time.monotonic() - started))
