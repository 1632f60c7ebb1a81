"""Whether a call may join the queue: bounded by sequences, by tokens of work, and by what its deadline allows.

Pure and deterministic: no torch, no clock. What waits is counted here too, each request once from its submission
until it is in a step, aborted or ended.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from modelfleet_api.protocol import StepTime

from modelfleet_engine.request import GenerationRequest
from modelfleet_engine.step_time import predict_seconds

# A 429 tells the client to come back within this range.
MIN_RETRY_AFTER_SECONDS = 1
MAX_RETRY_AFTER_SECONDS = 60
# The queue may hold the work of so many full steps, unless configured otherwise.
AUTO_QUEUED_STEPS = 256
# Answers are assumed to be at most this long until some have ended; many clients ask for far more than they take.
FIRST_EXPECTED_OUTPUT_TOKENS = 256


class Refusal(StrEnum):
    """Why a call is not admitted; the words are the API's error codes and the label of the metric."""

    QUEUE_FULL = "queue_full"
    QUEUED_TOKENS = "queued_tokens"
    DEADLINE_UNREACHABLE = "deadline_unreachable"
    DEADLINE_EXCEEDED = "deadline_exceeded"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """`max_sequences` may run or wait; `max_queued_tokens` may wait. The other two are the shape of a step."""

    max_sequences: int
    max_queued_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """What may wait: so many sequences, and so many tokens of work; None: as much as AUTO_QUEUED_STEPS full steps."""

    sequences: int
    tokens: int | None = None

    def admission_limits(self, *, max_num_seqs: int, max_num_batched_tokens: int) -> AdmissionLimits:
        """The limits with everything resolved."""
        return AdmissionLimits(
            max_sequences=max_num_seqs + self.sequences,
            max_queued_tokens=AUTO_QUEUED_STEPS * max_num_batched_tokens if self.tokens is None else self.tokens,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What some sequences still need: prompt tokens to compute, and the answers they are expected to give."""

    sequences: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Both kinds together: what the queue's bound counts."""
        return self.prompt_tokens + self.output_tokens

    def __add__(self, other: Work) -> Work:
        return Work(
            sequences=self.sequences + other.sequences,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
        )

    def __sub__(self, other: Work) -> Work:
        return Work(
            sequences=self.sequences - other.sequences,
            prompt_tokens=self.prompt_tokens - other.prompt_tokens,
            output_tokens=self.output_tokens - other.output_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """What a decision looks at. `outstanding` counts running, waiting and prepared sequences; `waiting` is part of it.

    `ahead` is the part of `waiting` that goes before the call: what has a priority as good as its own, or a better one.
    `step_time` is None while nothing is known of the device: then nothing is predicted.
    """

    outstanding: int
    waiting: Work
    ahead: Work
    kv_tokens: int
    step_time: StepTime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Admitted if `refusal` is None; else why not, in a sentence, and when to come back."""

    refusal: Refusal | None = None
    message: str = ""
    retry_after_seconds: int = MIN_RETRY_AFTER_SECONDS


ADMITTED = Decision()


def decide(call: Work, state: EngineState, limits: AdmissionLimits, *, seconds_left: float | None = None) -> Decision:
    """Whether a call with this work may join. `seconds_left` until its deadline; None: it has none.

    Where nothing waits every call that fits the sequences is admitted, however large: it could not be smaller later.
    """
    if seconds_left is not None and seconds_left <= 0:
        return Decision(refusal=Refusal.DEADLINE_EXCEEDED, message="The request's deadline had passed when it came.")
    if state.outstanding + call.sequences > limits.max_sequences:
        return Decision(
            refusal=Refusal.QUEUE_FULL,
            message=f"The queue is full: at most {limits.max_sequences} sequences may run or wait, "
            f"{state.outstanding} do and {call.sequences} more were asked for.",
            retry_after_seconds=_retry_after(state, limits, share=_share(call.sequences, of=state.waiting.sequences)),
        )
    queued = state.waiting.tokens
    if queued and queued + call.tokens > limits.max_queued_tokens:
        too_many = queued + call.tokens - limits.max_queued_tokens
        return Decision(
            refusal=Refusal.QUEUED_TOKENS,
            message=f"The queue is full: at most {limits.max_queued_tokens} tokens of work may wait, "
            f"{queued} do and this request would add about {call.tokens}.",
            retry_after_seconds=_retry_after(state, limits, share=_share(too_many, of=queued)),
        )
    wait = wait_seconds(_as_its_priority_sees_it(state), limits)
    if seconds_left is not None and wait > seconds_left:
        return Decision(
            refusal=Refusal.DEADLINE_UNREACHABLE,
            message=f"The request has {seconds_left:.1f} s left and could not begin before {wait:.1f} s.",
            retry_after_seconds=_bounded(wait - seconds_left),
        )
    return ADMITTED


def _as_its_priority_sees_it(state: EngineState) -> EngineState:
    """The state without what waits behind the call."""
    behind = state.waiting.sequences - state.ahead.sequences
    return replace(state, outstanding=state.outstanding - behind, waiting=state.ahead)


def wait_seconds(state: EngineState, limits: AdmissionLimits) -> float:
    """When a call behind all that waits would begin to be computed; 0 where nothing waits or nothing is known.

    With t = a + b*sequences + c*prefill_tokens + d*kv_tokens for one step, S places, a budget of B tokens, W waiting
    sequences that have P prompt and O answer tokens to go, and r = min(S, sequences alive) that decode meanwhile:
    - computing the prompts ahead takes P*c, and ceil(P/B) steps of a + b*r + d*kv each;
    - each place is free again after an answer, O/W tokens; the E sequences that find no free place begin after
      E*(O/W)/S decode steps of a + b*r + d*kv each.
    The prompts' steps decode as well, so the longer of the two counts of steps is what costs a + b*r + d*kv.
    """
    waiting, step = state.waiting, state.step_time
    if step is None or not waiting.sequences:
        return 0.0
    decoding = min(limits.max_num_seqs, state.outstanding)
    decode_seconds = predict_seconds(step, sequences=decoding, prefill_tokens=0, kv_tokens=state.kv_tokens)
    prompt_steps = math.ceil(waiting.prompt_tokens / limits.max_num_batched_tokens)
    without_place = max(0, state.outstanding + 1 - limits.max_num_seqs)
    answer_tokens = waiting.output_tokens / waiting.sequences
    place_steps = without_place * answer_tokens / limits.max_num_seqs
    return waiting.prompt_tokens * step.per_prefill_token_seconds + max(prompt_steps, place_steps) * decode_seconds


def _retry_after(state: EngineState, limits: AdmissionLimits, *, share: float) -> int:
    """When this share of what waits is expected to have begun."""
    return _bounded(share * wait_seconds(state, limits))


def _share(part: int, *, of: int) -> float:
    return min(1.0, part / of) if of else 1.0


def _bounded(seconds: float) -> int:
    return min(MAX_RETRY_AFTER_SECONDS, max(MIN_RETRY_AFTER_SECONDS, math.ceil(seconds)))


class WaitingWork:
    """The work of each request that waits, and their sum. A request is taken away once; further times do nothing."""

    def __init__(self) -> None:
        self._by_request: dict[str, tuple[int, Work]] = {}
        # Priorities with nothing waiting are not in it.
        self._by_priority: dict[int, Work] = {}
        self.total = Work()

    def add(self, works: Iterable[tuple[str, Work]], *, priority: int) -> None:
        """These requests wait from now on."""
        for request_id, work in works:
            if request_id in self._by_request:
                raise ValueError(f"request {request_id} waits already")
            self._by_request[request_id] = (priority, work)
            self._by_priority[priority] = self._by_priority.get(priority, Work()) + work
            self.total += work

    def release(self, request_id: str) -> None:
        """The request is in a step, or has ended before it came to that."""
        entry = self._by_request.pop(request_id, None)
        if entry is None:
            return
        priority, work = entry
        self.total -= work
        self._by_priority[priority] -= work
        if not self._by_priority[priority].sequences:
            del self._by_priority[priority]

    def ahead_of(self, priority: int) -> Work:
        """What waits and goes before a request of this priority that comes now."""
        return sum((work for other, work in self._by_priority.items() if other <= priority), Work())


def work_of(requests: Iterable[GenerationRequest], *, expected_output_tokens: float | None) -> list[tuple[str, Work]]:
    """The work of each request of a call, by request id.

    An answer is expected to be as long as the mean of those before (None: there were none), at most what was asked
    for. The prompt of a group is computed once and counted for its first member; what the prefix cache will save is
    not known here, so a bound is kept with some room to spare.
    """
    expected = FIRST_EXPECTED_OUTPUT_TOKENS if expected_output_tokens is None else math.ceil(expected_output_tokens)
    groups: set[str] = set()
    works: list[tuple[str, Work]] = []
    for request in requests:
        is_computed = not request.group_id or request.group_id not in groups
        groups.add(request.group_id)
        work = Work(
            sequences=1,
            prompt_tokens=len(request.prompt_token_ids) if is_computed else 0,
            output_tokens=max(1, request.min_tokens, min(request.max_tokens, expected)),
        )
        works.append((request.request_id, work))
    return works
