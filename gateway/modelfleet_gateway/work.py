"""How much each pod has to do: what this gateway sent and has not seen end, corrected by what engines say. PURE.

Work is counted in prefill tokens: a token of the answer counts for what it adds to the steps of all others. What was
just sent is known at once; what others send (another gateway, a client with the pod's address) only from `GET /load`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from modelfleet_api.protocol import Load, StepTime

from modelfleet_gateway.fleet import ModelId

# Three probes of 2 s missed.
STALE_AFTER_SECONDS = 6.0
# Of an engine that has never said how many sequences it takes: a small server's batch.
UNKNOWN_MAX_IN_FLIGHT = 64
# A sequence's share of a step over a prefill token's: 0.103 ms over 0.0442 ms for an 8B model on one large GPU.
DEFAULT_DECODE_WEIGHT = 2.3
MIN_DECODE_WEIGHT, MAX_DECODE_WEIGHT = 0.1, 50.0
# Fewer steps than this say nothing of their four coefficients.
MIN_OBSERVED_STEPS = 100
# English under most vocabularies, as if this much had been seen of it; a model's own texts outweigh it soon.
PRIOR_CHARACTERS_PER_TOKEN = 4.0
PRIOR_TOKENS = 1000.0
# What remains of a text's weight after the next one: about the last 200 count.
RATIO_MEMORY = 0.995
OUTPUT_MEMORY = 0.98


class PodView(NamedTuple):
    """One pod as routing sees it. A tuple, for 64 of them are read per decision: a frozen dataclass takes 5x as long.

    `queued_tokens` are the engine's own; `is_stale`: it has not been heard for some seconds, so only what this gateway
    itself sent counts.
    """

    in_flight: int
    work_tokens: float
    kv_usage: float
    max_in_flight: int
    queued_tokens: int
    is_stale: bool


@dataclass(slots=True)
class _Sent:
    prefill_tokens: float
    output_tokens: float


@dataclass(slots=True)
class _Pod:
    sent: dict[str, _Sent] = field(default_factory=dict)
    prefill_tokens: float = 0.0
    output_tokens: float = 0.0
    decode_weight: float = DEFAULT_DECODE_WEIGHT
    load: Load | None = None
    observed_at: float = 0.0
    # What the engine has beyond what was sent from here, as of its last word.
    others_in_flight: int = 0
    others_work_tokens: float = 0.0
    # The view as of the last change, and until when it is true.
    view: PodView | None = None
    view_until: float = 0.0


@dataclass(slots=True)
class _Ratio:
    characters: float = PRIOR_CHARACTERS_PER_TOKEN * PRIOR_TOKENS
    tokens: float = PRIOR_TOKENS


class PodBook:
    """All pods' work. A pod exists from the first word about it until it is forgotten."""

    def __init__(self, *, unknown_max_in_flight: int = UNKNOWN_MAX_IN_FLIGHT) -> None:
        self._unknown_max_in_flight = unknown_max_in_flight
        self._pods: dict[str, _Pod] = {}
        self._ratios: dict[ModelId, _Ratio] = {}
        self._mean_output_tokens = 0.0

    def began(self, uid: str, *, request_id: str, prefill_tokens: float, output_tokens: float, now: float) -> None:
        """The request was sent to the pod, which must compute so many tokens of its prompt, and of its answer."""
        self.ended(uid, request_id, now)
        pod = self._changed(uid)
        pod.sent[request_id] = _Sent(prefill_tokens, output_tokens)
        pod.prefill_tokens += prefill_tokens
        pod.output_tokens += output_tokens
        self._mean_output_tokens += (1 - OUTPUT_MEMORY) * (output_tokens - self._mean_output_tokens)

    def first_token(self, uid: str, request_id: str, now: float) -> None:
        """Its prompt is computed. How much of its answer is left nobody knows: the expectation stays."""
        pod = self._pods.get(uid)
        if pod is not None and request_id in pod.sent:
            sent = pod.sent[request_id]
            self._changed(uid).prefill_tokens -= sent.prefill_tokens
            sent.prefill_tokens = 0.0

    def ended(self, uid: str, request_id: str, now: float) -> None:
        """Answered, failed or cancelled; a request that is not known has ended already."""
        pod = self._pods.get(uid)
        if pod is None or request_id not in pod.sent:
            return
        sent = pod.sent.pop(request_id)
        self._changed(uid)
        # Sums of floats keep a rest; an idle pod has exactly nothing.
        pod.prefill_tokens = pod.prefill_tokens - sent.prefill_tokens if pod.sent else 0.0
        pod.output_tokens = pod.output_tokens - sent.output_tokens if pod.sent else 0.0

    def observed(self, uid: str, load: Load, now: float) -> None:
        """The engine's own word, of this moment."""
        pod = self._changed(uid)
        pod.load, pod.observed_at = load, now
        pod.decode_weight = _decode_weight(load.step_time)
        pod.others_in_flight = max(0, load.running + load.waiting - len(pod.sent))
        pod.others_work_tokens = 0.0
        if pod.others_in_flight:
            pod.others_work_tokens = max(0.0, load.queued_tokens - pod.prefill_tokens)
            pod.others_work_tokens += pod.decode_weight * self._mean_output_tokens * pod.others_in_flight

    def view(self, uid: str, now: float) -> PodView:
        """The pod now; one that nobody has spoken of is idle and stale."""
        pod = self._pods.get(uid)
        if pod is None:
            return PodView(0, 0.0, 0.0, self._unknown_max_in_flight, 0, True)
        if pod.view is None or now >= pod.view_until:
            pod.view, pod.view_until = self._view(pod, now)
        return pod.view

    def in_flight(self, uid: str) -> int:
        """What was sent from here alone and has not ended: what a drain waits for."""
        pod = self._pods.get(uid)
        return 0 if pod is None else len(pod.sent)

    def forget(self, uid: str) -> None:
        """The pod is gone."""
        self._pods.pop(uid, None)

    def learn_ratio(self, model: ModelId, *, characters: int, tokens: int) -> None:
        """A prompt of this many characters had this many tokens."""
        ratio = self._ratios.setdefault(model, _Ratio())
        ratio.characters = ratio.characters * RATIO_MEMORY + characters
        ratio.tokens = ratio.tokens * RATIO_MEMORY + tokens

    def tokens_of(self, model: ModelId, *, characters: int) -> float:
        """How many tokens a text of this length probably has."""
        ratio = self._ratios.get(model)
        if ratio is None:
            return characters / PRIOR_CHARACTERS_PER_TOKEN
        return characters * ratio.tokens / max(ratio.characters, 1.0)

    def _changed(self, uid: str) -> _Pod:
        pod = self._pods.get(uid)
        if pod is None:
            pod = self._pods[uid] = _Pod()
        pod.view = None
        return pod

    def _view(self, pod: _Pod, now: float) -> tuple[PodView, float]:
        work_tokens = pod.prefill_tokens + pod.decode_weight * pod.output_tokens
        load = pod.load
        if load is None:
            return PodView(len(pod.sent), work_tokens, 0.0, self._unknown_max_in_flight, 0, True), float("inf")
        max_in_flight = load.max_num_seqs or self._unknown_max_in_flight
        stale_at = pod.observed_at + STALE_AFTER_SECONDS
        if now >= stale_at:
            return PodView(len(pod.sent), work_tokens, 0.0, max_in_flight, 0, True), float("inf")
        view = PodView(
            len(pod.sent) + pod.others_in_flight,
            work_tokens + pod.others_work_tokens,
            load.kv_blocks_used / load.kv_blocks_total if load.kv_blocks_total else 0.0,
            max_in_flight,
            load.queued_tokens,
            False,
        )
        return view, stale_at


def _decode_weight(step_time: StepTime | None) -> float:
    if step_time is None or step_time.observed_steps < MIN_OBSERVED_STEPS or not step_time.per_prefill_token_seconds:
        return DEFAULT_DECODE_WEIGHT
    weight = step_time.per_sequence_seconds / step_time.per_prefill_token_seconds
    return min(max(weight, MIN_DECODE_WEIGHT), MAX_DECODE_WEIGHT)
