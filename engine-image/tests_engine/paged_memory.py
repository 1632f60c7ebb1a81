"""Paged "KV" without torch: it holds token ids, so any mistake of the host's planning changes the text.

A sampled token is a function of every token read back through the block table: a wrong block, slot, position, copy or
placeholder shows. Tests compare with `expected_tokens`, which knows nothing of blocks or batches.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from modelfleet_engine.step_plan import BlockCopy, ScheduledSequence, StepPlan, StepResult, TokenLogprobs

NextToken = Callable[[Sequence[int]], int]

LOG_HALF = math.log(0.5)


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


def token_logprobs(
    model: NextToken, context: Sequence[int], token: int, *, alternatives: int, vocab_size: int
) -> TokenLogprobs:
    """What the fake says of `token` after `context`: the model's own choice ranks first, then the ids after it.

    The token at rank r has probability 2**-r, whatever its id.
    """
    likeliest = model(context)
    rank = (token - likeliest) % vocab_size + 1
    top = tuple((likeliest + offset) % vocab_size for offset in range(alternatives))
    return TokenLogprobs(
        logprob=rank * LOG_HALF,
        rank=rank,
        top_token_ids=top,
        top_logprobs=tuple((offset + 1) * LOG_HALF for offset in range(alternatives)),
    )


class PagedMemory:
    """The device's state: token ids by block, and each slot's last sampled token and whole history."""

    def __init__(self, *, model: NextToken, vocab_size: int, kv_blocks: int, block_tokens: int) -> None:
        self._model = model
        self._vocab_size = vocab_size
        self._block_tokens = block_tokens
        self._cells: list[list[int | None]] = [[None] * block_tokens for _ in range(kv_blocks)]
        self._last_sampled: dict[int, int] = {}
        # What penalties count: prompt and generated tokens, kept by the device itself.
        self._history: dict[int, list[int]] = {}

    def run(self, plan: StepPlan) -> StepResult:
        """Copies first, then all writes, then all reads, as one forward pass does."""
        slots = [row.slot for row in plan.sequences]
        assert len(set(slots)) == len(slots), f"two rows of step {plan.step_id} share a slot: {slots}"
        self._copy(plan.block_copies)
        written = [cell for row in plan.sequences for cell in self._write(row)]
        assert len(set(written)) == len(written), f"two rows of step {plan.step_id} write to one place"
        rows = list(enumerate(plan.sequences))
        prompt_logprobs = {index: self._targets(row) for index, row in rows if row.prompt_logprobs is not None}
        logprobs = {
            index: self._logprobs(row, row.sampling.logprobs)
            for index, row in rows
            if row.sampling is not None and row.sampling.logprobs is not None
        }
        return StepResult(
            step_id=plan.step_id,
            sampled_token_ids=tuple(self._sample(row) for row in plan.sequences),
            busy_seconds=0.0,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )

    def tokens_of(self, block: int) -> list[int | None]:
        """The token ids whose KV a block holds."""
        return self._cells[block]

    def _copy(self, copies: Sequence[BlockCopy]) -> None:
        for copy in copies:
            self._cells[copy.destination] = list(self._cells[copy.source])

    def _write(self, row: ScheduledSequence) -> list[tuple[int, int]]:
        if row.is_first_chunk:
            self._last_sampled.pop(row.slot, None)
            self._history[row.slot] = [*row.prompt_token_ids, *row.generated_token_ids]
            known = self._history[row.slot][row.start_position :]
            assert tuple(known[: len(row.token_ids)]) == row.token_ids
        tokens = (self._last_sampled[row.slot],) if row.input_from_previous_step else row.token_ids
        assert tokens, "a row computes at least one token"
        assert len(row.block_table) == -(-(row.start_position + len(tokens)) // self._block_tokens)
        written = []
        for offset, token in enumerate(tokens):
            position = row.start_position + offset
            block = row.block_table[position // self._block_tokens]
            self._cells[block][position % self._block_tokens] = token
            written.append((block, position % self._block_tokens))
        return written

    def _context(self, row: ScheduledSequence) -> list[int]:
        """The tokens before the next one, read back through the block table."""
        context: list[int] = []
        for position in range(row.start_position + row.computed_tokens):
            token = self._cells[row.block_table[position // self._block_tokens]][position % self._block_tokens]
            assert token is not None, f"position {position} of slot {row.slot} was never written"
            context.append(token)
        return context

    def _sample(self, row: ScheduledSequence) -> int | None:
        if row.sampling is None:
            return None
        context = self._context(row)
        assert context == self._history[row.slot], f"slot {row.slot} counts other tokens than its KV holds"
        token = _unbanned(self._model(context), row.sampling.banned_token_ids, self._vocab_size)
        self._last_sampled[row.slot] = token
        self._history[row.slot].append(token)
        return token

    def _logprobs(self, row: ScheduledSequence, alternatives: int) -> TokenLogprobs:
        assert row.sampling is not None
        context = self._context(row)
        token = _unbanned(self._model(context), row.sampling.banned_token_ids, self._vocab_size)
        return token_logprobs(self._model, context, token, alternatives=alternatives, vocab_size=self._vocab_size)

    def _targets(self, row: ScheduledSequence) -> tuple[TokenLogprobs, ...]:
        assert row.prompt_logprobs is not None
        context = self._context(row)
        assert 1 <= len(row.target_token_ids) <= row.computed_tokens
        return tuple(
            token_logprobs(
                self._model,
                context[: row.start_position + 1 + offset],
                target,
                alternatives=row.prompt_logprobs,
                vocab_size=self._vocab_size,
            )
            for offset, target in enumerate(row.target_token_ids)
        )
