"""The state of one request between admission and its end. Owned by the scheduler; no torch, no time."""

from __future__ import annotations

from dataclasses import replace

from modelfleet_engine.request import FinishReason, GenerationRequest
from modelfleet_engine.step_plan import SamplingParameters

# How long a request of one priority worse is overtaken by those of the better one. Without an end to it a busy engine
# would never serve the worse ones at all.
PRIORITY_SECONDS = 60.0


class Sequence:
    """What is computed of a request, what is known, and which KV blocks hold it.

    `due_seconds` orders requests that compete for places and budgets: a priority is a head start of `PRIORITY_SECONDS`.
    `computed_tokens` counts tokens whose KV is written by steps planned so far (done or in flight).
    `placeholders` counts tokens sampled by steps in flight: they exist, their ids are not known yet.
    `highest_computed_tokens` is the most that was ever computed: what is below it and computed anew was lost.
    `registered_blocks` of the block table, counted from its start, are in the prefix index; `digests` name the content
    of the full blocks, as far as it was needed. `prompt_logprobs_planned` counts the prompt's tokens whose log
    probabilities were asked from the device, `prompt_logprobs_delivered` those that came.
    """

    __slots__ = (
        "_block_table_tuple",
        "_sampling_below_min_tokens",
        "arrival",
        "block_table",
        "cached_tokens",
        "computed_tokens",
        "digests",
        "due_seconds",
        "finish_reason",
        "highest_computed_tokens",
        "is_new_in_slot",
        "output_token_ids",
        "placeholders",
        "prompt_logprobs_delivered",
        "prompt_logprobs_planned",
        "prompt_tokens",
        "registered_blocks",
        "request",
        "slot",
        "was_planned",
    )

    def __init__(self, request: GenerationRequest, *, arrival: int, arrived_seconds: float) -> None:
        self.request = request
        self.arrival = arrival
        self.due_seconds = arrived_seconds + request.priority * PRIORITY_SECONDS
        self.prompt_tokens = len(request.prompt_token_ids)
        self.output_token_ids: list[int] = []
        self.computed_tokens = 0
        self.highest_computed_tokens = 0
        self.placeholders = 0
        self.slot: int | None = None
        self.is_new_in_slot = False
        self.was_planned = False
        self.finish_reason: FinishReason | None = None
        self.block_table: list[int] = []
        self.registered_blocks = 0
        self.digests: list[bytes] = []
        self.cached_tokens = 0
        self.prompt_logprobs_planned = 0
        self.prompt_logprobs_delivered = 0
        self._block_table_tuple: tuple[int, ...] = ()
        self._sampling_below_min_tokens: SamplingParameters | None = None

    @property
    def known_tokens(self) -> int:
        """Prompt and generated tokens whose ids the host knows."""
        return self.prompt_tokens + len(self.output_token_ids)

    @property
    def total_tokens(self) -> int:
        """Known tokens and those that steps in flight will sample."""
        return self.prompt_tokens + len(self.output_token_ids) + self.placeholders

    @property
    def remaining_tokens(self) -> int:
        """Tokens that exist and are not computed yet."""
        return self.total_tokens - self.computed_tokens

    @property
    def is_decoding(self) -> bool:
        """Only the newest token is left to compute."""
        return self.computed_tokens >= self.prompt_tokens and self.computed_tokens == self.total_tokens - 1

    @property
    def is_planned_out(self) -> bool:
        """Every token this request may generate is sampled or in flight: nothing is left to plan."""
        return len(self.output_token_ids) + self.placeholders >= self.request.max_tokens

    @property
    def reusable_tokens(self) -> int:
        """How many tokens may come from the prefix cache: one is always computed, for its logits.

        Log probabilities of the prompt need its hidden states, so what was not asked from the device is computed.
        """
        if self.request.prompt_logprobs is None:
            return self.known_tokens - 1
        return min(self.known_tokens - 1, self.prompt_logprobs_planned)

    @property
    def can_fork(self) -> bool:
        """Whether a sibling with the same prompt may stand in for all it has computed and must compute."""
        return not self.output_token_ids and self.request.prompt_logprobs is None

    def token_ids(self, *, start: int, count: int) -> tuple[int, ...]:
        """Known token ids at positions [start, start + count)."""
        end = start + count
        prompt = self.request.prompt_token_ids
        if end <= len(prompt):
            return prompt[start:end]
        offset = len(prompt)
        generated = self.output_token_ids[max(0, start - offset) : end - offset]
        return (*prompt[start:], *generated)

    def block_table_for(self, blocks: int) -> tuple[int, ...]:
        """The first `blocks` blocks. The whole table is copied only after it changed, not in each step."""
        if blocks < len(self.block_table):
            return tuple(self.block_table[:blocks])
        if len(self._block_table_tuple) != blocks:
            self._block_table_tuple = tuple(self.block_table)
        return self._block_table_tuple

    def replace_block(self, index: int, block: int) -> None:
        """Puts another block with the same content into the table."""
        self.block_table[index] = block
        self._block_table_tuple = ()

    def leave_place(self) -> list[int]:
        """Forgets the blocks, which the caller gives back, and all that was computed."""
        blocks, self.block_table = self.block_table, []
        self._block_table_tuple = ()
        self.highest_computed_tokens = max(self.highest_computed_tokens, self.computed_tokens)
        self.registered_blocks = 0
        self.computed_tokens = 0
        return blocks

    def sampling_for_next(self) -> SamplingParameters:
        """How the next token is drawn: stop tokens are banned while it would be too early to stop."""
        request = self.request
        if len(self.output_token_ids) + self.placeholders >= request.min_tokens:
            return request.sampling
        if self._sampling_below_min_tokens is None:
            banned = request.sampling.banned_token_ids + tuple(sorted(request.stop_token_ids))
            self._sampling_below_min_tokens = replace(request.sampling, banned_token_ids=banned)
        return self._sampling_below_min_tokens

    def append(self, token_id: int) -> FinishReason | None:
        """Adds a sampled token and says whether it was the last one."""
        self.output_token_ids.append(token_id)
        generated = len(self.output_token_ids)
        if token_id in self.request.stop_token_ids and generated >= self.request.min_tokens:
            self.finish_reason = FinishReason.STOP
        elif generated >= self.request.max_tokens:
            self.finish_reason = FinishReason.LENGTH
        return self.finish_reason
