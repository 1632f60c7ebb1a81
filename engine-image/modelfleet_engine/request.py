"""A request as the engine sees it, and what the engine says of it. `sequence` has its state while it is served.

No torch, no time: the scheduler and a simulator use these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    """A request is in a step for the first time; its first `cached_tokens` tokens were found in the prefix cache.

    The choices of one group all report what the first of them found: what they share among themselves is one prompt
    computed once, which OpenAI's usage counts once, and no hit.
    """

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
