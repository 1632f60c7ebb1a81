"""What the scheduler asks of the device and what the device answers: frozen, and free of torch.

The contract of one step, shared by the scheduler (which plans), the bridge (which carries) and the model runner
(which computes). Planning runs one step ahead: when step N+1 is planned the token sampled in step N may not be
known yet, so a decode entry says `input_from_previous_step` and the device takes the token from its own table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParameters:
    """How one token is drawn. Neutral values mean "off". Temperature 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    choice_index: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    # Token ids that may not be drawn (EOS below min_tokens, or under ignore_eos nothing).
    banned_token_ids: tuple[int, ...] = ()
    # (token id, value added to its logit), OpenAI's `logit_bias`.
    logit_bias: tuple[tuple[int, float], ...] = ()
    # How many of the most likely tokens to report beside the drawn one; None: no log probabilities at all.
    logprobs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCopy:
    """Copies one KV block onto another in every layer: copy-on-write for sequences that share a prompt."""

    source: int
    destination: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """Log probabilities at one position, of the model's own distribution: before penalties and temperature.

    `rank` of the token itself counts from 1. The most likely tokens come in falling order.
    """

    logprob: float
    rank: int
    top_token_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledSequence:
    """One row of a step: a prefill chunk or one decode token of one sequence.

    `slot` is the sequence's stable row in the device's state table, in [0, max_num_seqs).
    `token_ids` are the tokens computed in this step; with `input_from_previous_step` it is empty and exactly one
    token is computed, the one this slot sampled last. `start_position` is the count of tokens computed before.
    `block_table` covers positions [0, start_position + computed tokens). It may name another block than in the step
    before: one with the same content, which another sequence computed first.
    `sampling` is None where this step's last token is not the sequence's last known one (a prefill chunk).
    `is_first_chunk` tells the device to reset the slot: this is the sequence's first row since it got the slot, though
    not always at position 0 (a cached prefix is not computed). `prompt_token_ids` is then the whole prompt and
    `generated_token_ids` what was generated before a preemption (both for penalties).
    `prompt_logprobs`: report log probabilities of `target_token_ids`, the prompt's tokens at positions
    start_position + 1 and on, each with so many alternatives; None: not wanted. At most one target for each computed
    token: the prompt's last token has none.
    """

    slot: int
    token_ids: tuple[int, ...]
    input_from_previous_step: bool
    start_position: int
    block_table: tuple[int, ...]
    sampling: SamplingParameters | None
    is_first_chunk: bool = False
    prompt_token_ids: tuple[int, ...] = ()
    generated_token_ids: tuple[int, ...] = ()
    prompt_logprobs: int | None = None
    target_token_ids: tuple[int, ...] = ()

    @property
    def computed_tokens(self) -> int:
        """How many tokens this row computes in this step."""
        return 1 if self.input_from_previous_step else len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """One forward pass: decodes first, then prefill chunks. Never empty. `block_copies` are done before it."""

    step_id: int
    sequences: tuple[ScheduledSequence, ...]
    block_copies: tuple[BlockCopy, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """`sampled_token_ids[i]` belongs to `plan.sequences[i]`; None where the row did not sample.

    `logprobs` and `prompt_logprobs` (one per target) are keyed by row and hold only rows that asked for them.
    """

    step_id: int
    sampled_token_ids: tuple[int | None, ...]
    busy_seconds: float
    logprobs: Mapping[int, TokenLogprobs] = field(default_factory=dict)
    prompt_logprobs: Mapping[int, tuple[TokenLogprobs, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfiledStep:
    """A step measured before the first request, in the terms of the step-time model: the fit starts from it."""

    sequences: int
    prefill_tokens: int
    kv_tokens: int
    seconds: float


class Device(Protocol):
    """Runs plans strictly in the order of submission, on its own thread, process or group of processes."""

    def submit(self, plan: StepPlan) -> None:
        """Queues one step and returns at once."""

    def wait(self) -> StepResult:
        """Blocks until the oldest submitted step is done. Raises what the step raised."""

    def close(self) -> None:
        """Stops the device; steps not waited for are dropped."""
