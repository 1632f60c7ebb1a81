"""A deterministic asynchronous device without torch: it computes on its own thread, through paged "KV".

Its KV cache holds token ids. A sampled token is a function of every token read back through the block table, so a
wrong block, slot, position or placeholder anywhere in the host's planning changes the text: tests compare it with
`expected_tokens`, which knows nothing of blocks or batches.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

from modelfleet_engine.step_plan import ScheduledSequence, StepPlan, StepResult

NextToken = Callable[[Sequence[int]], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class HashModel:
    """The next token is a checksum of the whole context: any wrong token before it shows."""

    vocab_size: int
    seed: int = 0

    def __call__(self, context: Sequence[int]) -> int:
        data = b"".join(token.to_bytes(4, "little") for token in context)
        return zlib.crc32(data, self.seed) % self.vocab_size


def _unbanned(token: int, row_banned: Sequence[int], vocab_size: int) -> int:
    while token in row_banned:
        token = (token + 1) % vocab_size
    return token


def expected_tokens(
    model: NextToken,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    stop_token_ids: frozenset[int] = frozenset(),
) -> list[int]:
    """What one sequence alone generates, token by token."""
    context = list(prompt)
    for _ in range(max_tokens):
        context.append(model(context))
        if context[-1] in stop_token_ids:
            break
    return context[len(prompt) :]


class PagedMemory:
    """The device's state: token ids by block, and each slot's last sampled token."""

    def __init__(self, *, model: NextToken, vocab_size: int, kv_blocks: int, block_tokens: int) -> None:
        self._model = model
        self._vocab_size = vocab_size
        self._block_tokens = block_tokens
        self._cells: list[list[int | None]] = [[None] * block_tokens for _ in range(kv_blocks)]
        self._last_sampled: dict[int, int] = {}

    def run(self, plan: StepPlan) -> tuple[int | None, ...]:
        """All writes first, then all reads, as one forward pass does."""
        slots = [row.slot for row in plan.sequences]
        assert len(set(slots)) == len(slots), f"two rows of step {plan.step_id} share a slot: {slots}"
        for row in plan.sequences:
            self._write(row)
        return tuple(self._sample(row) for row in plan.sequences)

    def _write(self, row: ScheduledSequence) -> None:
        if row.is_first_chunk:
            self._last_sampled.pop(row.slot, None)
            assert row.start_position == 0
            assert row.prompt_token_ids[: len(row.token_ids)] == row.token_ids[: len(row.prompt_token_ids)]
        tokens = (self._last_sampled[row.slot],) if row.input_from_previous_step else row.token_ids
        assert tokens, "a row computes at least one token"
        for offset, token in enumerate(tokens):
            position = row.start_position + offset
            block = row.block_table[position // self._block_tokens]
            self._cells[block][position % self._block_tokens] = token

    def _sample(self, row: ScheduledSequence) -> int | None:
        if row.sampling is None:
            return None
        context: list[int] = []
        for position in range(row.start_position + row.computed_tokens):
            token = self._cells[row.block_table[position // self._block_tokens]][position % self._block_tokens]
            assert token is not None, f"position {position} of slot {row.slot} was never written"
            context.append(token)
        token = _unbanned(self._model(context), row.sampling.banned_token_ids, self._vocab_size)
        self._last_sampled[row.slot] = token
        return token


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
                tokens = self._memory.run(plan)
            except Exception as error:
                self._results.put(error)
                continue
            self._results.put(
                StepResult(step_id=plan.step_id, sampled_token_ids=tokens, busy_seconds=time.monotonic() - started)
            )
