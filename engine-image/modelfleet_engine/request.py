"""A request as the engine sees it, and the state of one sequence while it is served.

No torch, no time: the scheduler and a simulator use these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from modelfleet_engine.step_plan import SamplingParameters, TokenLogprobs


class FinishReason(StrEnum):
    """Why a sequence ended; the first two are OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    # Its deadline passed, waiting or running: what is left of it is not computed.
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One sequence to generate: all defaults resolved, limits already checked at admission.

    `stop_token_ids` holds every EOS id (unless they are ignored) and the user's own. None of them may be drawn
    before `min_tokens` tokens were generated. `max_tokens` >= 1.
    `priority`: lower is sooner. `deadline_seconds`: on the engine's monotonic clock.
    `cache_salt` separates tenants: prefixes are shared only under equal salts. `prefix_hashes` are the gateway's
    chained text-block hashes of the prompt, k of n standing for its first tokens * k / n tokens.
    Requests with one non-empty `group_id` have the same prompt and salt (the choices of one call): it is computed once.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParameters
    max_tokens: int
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    priority: int = 0
    deadline_seconds: float | None = None
    cache_salt: str = ""
    prefix_hashes: tuple[str, ...] = ()
    group_id: str = ""
    # Log probabilities of the prompt's tokens, each with so many alternatives; the prompt is then computed anew.
    prompt_logprobs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """A request is in a step for the first time; its first `cached_tokens` tokens were found in the prefix cache."""

    request_id: str
    cached_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutputs:
    """What one step brought, in columns: `token_ids[i]` was generated for `request_ids[i]`.

    `finish_reasons` names the requests that ended, with or without a token of this step. Log probabilities are there
    for requests that asked; `prompt_logprobs` come chunk by chunk, in order, for the prompt's tokens 1 and on.
    """

    request_ids: tuple[str, ...] = ()
    token_ids: tuple[int, ...] = ()
    finish_reasons: Mapping[str, FinishReason] = field(default_factory=dict)
    logprobs: Mapping[str, TokenLogprobs] = field(default_factory=dict)
    prompt_logprobs: Mapping[str, tuple[TokenLogprobs, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class KvEvents:
    """The gateway's text-block hashes whose KV became resident, and those whose KV was evicted, in this order."""

    stored: tuple[str, ...] = ()
    evicted: tuple[str, ...] = ()


class Sequence:
    """Mutable state of one request between admission and finish. Owned by the scheduler.

    `computed_tokens` counts tokens whose KV is written by steps planned so far (done or in flight).
    `placeholders` counts tokens sampled by steps in flight: they exist, their ids are not known yet.
    """

    __slots__ = (
        "arrival",
        "block_table",
        "computed_tokens",
        "finish_reason",
        "last_step_id",
        "output_token_ids",
        "placeholders",
        "request",
        "sampling_below_min_tokens",
        "slot",
    )

    def __init__(self, request: GenerationRequest, *, arrival: int) -> None:
        self.request = request
        self.arrival = arrival
        self.output_token_ids: list[int] = []
        self.block_table: list[int] = []
        self.computed_tokens = 0
        self.placeholders = 0
        self.slot: int | None = None
        self.last_step_id = -1
        self.finish_reason: FinishReason | None = None
        banned = request.sampling.banned_token_ids + tuple(sorted(request.stop_token_ids))
        self.sampling_below_min_tokens = replace(request.sampling, banned_token_ids=banned)

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def known_tokens(self) -> int:
        """Prompt and generated tokens whose ids the host knows."""
        return self.prompt_tokens + len(self.output_token_ids)

    @property
    def total_tokens(self) -> int:
        """Known tokens and those that steps in flight will sample."""
        return self.known_tokens + self.placeholders

    @property
    def is_decoding(self) -> bool:
        """Only the newest token is left to compute."""
        return self.computed_tokens >= self.prompt_tokens and self.computed_tokens == self.total_tokens - 1

    @property
    def is_planned_out(self) -> bool:
        """Every token this request may generate is sampled or in flight: nothing is left to plan."""
        return len(self.output_token_ids) + self.placeholders >= self.request.max_tokens

    def token_ids(self, *, start: int, count: int) -> tuple[int, ...]:
        """Known token ids at positions [start, start + count)."""
        end = start + count
        prompt = self.request.prompt_token_ids
        if end <= len(prompt):
            return prompt[start:end]
        offset = len(prompt)
        generated = self.output_token_ids[max(0, start - offset) : end - offset]
        return (*prompt[start:], *generated)

    def sampling_for_next(self) -> SamplingParameters:
        """How the next token is drawn: stop tokens are banned while it would be too early to stop."""
        position = len(self.output_token_ids) + self.placeholders
        return self.sampling_below_min_tokens if position < self.request.min_tokens else self.request.sampling

    def append(self, token_id: int) -> FinishReason | None:
        """Adds a sampled token and says whether it was the last one."""
        self.output_token_ids.append(token_id)
        generated = len(self.output_token_ids)
        if token_id in self.request.stop_token_ids and generated >= self.request.min_tokens:
            self.finish_reason = FinishReason.STOP
        elif generated >= self.request.max_tokens:
            self.finish_reason = FinishReason.LENGTH
        return self.finish_reason
