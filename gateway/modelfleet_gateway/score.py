"""Which pod gets a request. PURE: candidates and a random draw in, a choice with its reason out.

One rule for prefixes and load: the pod where the least work stands before and in the request. A prompt's cached blocks
are work it does not bring; a pod that is busier by more than that loses it. Must not change anything: the caller
records what it did with the choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import xxhash

from modelfleet_gateway.fleet import Strategy

# One block of the prefix index in tokens: 1,024 characters of about four.
BLOCK_TOKENS = 256.0
# What a token that this request must compute counts over one that waits before it: computing it delays all who come
# later as well. From 8 on hit rates are those of a router that knows all: docs/benchmarks/gateway.md.
PREFIX_WEIGHT = 16.0
# Work that differs by less is the same: it is an estimate, and all gateways would choose the same pod.
TIE_TOKENS = 64.0
# Beyond this use of the KV cache an engine soon preempts; each percent counts like this many tokens of work.
KV_TIGHT = 0.9
KV_TIGHT_TOKENS_PER_PERCENT = 1024.0
# A pod that has more than this times the mean in flight, and this many more, attracts nobody: neither by what it has
# cached nor as a session's home. So a prefix that all share spreads, and nobody waits for one pod beside idle ones.
ATTRACTION_BOUND, ATTRACTION_SLACK = 1.5, 2


class Candidate(NamedTuple):
    """A pod that may be chosen. A tuple, for a decision makes 64 of them: a frozen dataclass takes 5x as long.

    `weight` is its speed relative to the others; `slow_start` the share of it that it may use yet, above 0, at most 1.
    """

    uid: str
    matched_blocks: int
    in_flight: int
    max_in_flight: int
    work_tokens: float
    kv_usage: float
    weight: float
    slow_start: float


class Choice(NamedTuple):
    """`uid` None: no candidate has room. `reason` is one of a few words, fit for a metric's label.

    `scores`: of each candidate with room, by the strategy's own measure, the highest the best; for a trace.
    """

    uid: str | None
    reason: str
    scores: tuple[tuple[str, float], ...]


NO_ROOM = Choice(None, "no-room", ())


def choose(
    candidates: Sequence[Candidate],
    *,
    strategy: Strategy,
    prompt_blocks: int,
    draw: float,
    session_key: str | None,
    cursor: int,
) -> Choice:
    """`draw` in [0, 1) decides between equals; `cursor` is the number of requests before, for taking turns.

    Auto is PrefixAware: where no candidate has anything of the prompt, that is LeastLoad. Session without a key is too.
    """
    if strategy is Strategy.ROUND_ROBIN:
        return _take_turns([c for c in candidates if has_room(c)], cursor)
    if strategy is Strategy.SESSION and session_key is not None:
        return _keep_session([c for c in candidates if has_room(c)], session_key)
    return _least_work(candidates, prompt_blocks, draw, uses_prefix=strategy is not Strategy.LEAST_LOAD)


def has_room(candidate: Candidate) -> bool:
    """Whether the pod may be sent one more. A pod in its slow start always may have one."""
    in_flight = candidate.in_flight
    if in_flight >= candidate.max_in_flight:
        return False
    return in_flight == 0 or candidate.slow_start >= 1 or in_flight < candidate.max_in_flight * candidate.slow_start


def _least_work(candidates: Sequence[Candidate], prompt_blocks: int, draw: float, *, uses_prefix: bool) -> Choice:
    """The hot path: one loop without calls, 64 candidates in some 20 us."""
    scores = []
    best = -math.inf
    attraction = BLOCK_TOKENS * (PREFIX_WEIGHT - 1.0)
    bound = 0.0
    if uses_prefix and candidates:
        in_flight_of_all = sum([candidate[2] for candidate in candidates])
        bound = ATTRACTION_BOUND * in_flight_of_all / len(candidates) + ATTRACTION_SLACK
    for uid, matched, in_flight, max_in_flight, work_tokens, kv_usage, weight, slow_start in candidates:
        if in_flight >= max_in_flight * slow_start and (in_flight or not max_in_flight):
            continue
        missing = prompt_blocks - matched if in_flight < bound else prompt_blocks
        # A faster pod does the work sooner; that it need not be done anywhere is worth the same on all.
        score = -(missing * BLOCK_TOKENS + work_tokens) / (weight * slow_start) - missing * attraction
        if kv_usage > KV_TIGHT:
            score -= (kv_usage - KV_TIGHT) * 100 * KV_TIGHT_TOKENS_PER_PERCENT
        if score > best:
            best = score
        scores.append((uid, score))
    if not scores:
        return NO_ROOM
    worst_equal = best - TIE_TOKENS
    equals = [uid for uid, score in scores if score >= worst_equal]
    uid = equals[int(draw * len(equals))]
    reason = "prefix" if uses_prefix and _matched(candidates, uid) else "least-load"
    return Choice(uid, reason, tuple(scores))


def _matched(candidates: Sequence[Candidate], uid: str) -> int:
    return next(candidate.matched_blocks for candidate in candidates if candidate.uid == uid)


def _take_turns(candidates: Sequence[Candidate], cursor: int) -> Choice:
    if not candidates:
        return NO_ROOM
    chosen = cursor % len(candidates)
    scores = tuple((c.uid, float(position == chosen)) for position, c in enumerate(candidates))
    return Choice(candidates[chosen].uid, "round-robin", scores)


def _keep_session(candidates: Sequence[Candidate], session_key: str) -> Choice:
    """Rendezvous hashing: each session has its own order of the pods; one that comes or goes moves only its share."""
    if not candidates:
        return NO_ROOM
    seed = xxhash.xxh3_64_intdigest(session_key.encode("utf-8", "surrogatepass"))
    scores = tuple((c.uid, _affinity(c, seed)) for c in candidates)
    in_order = sorted(zip(candidates, scores, strict=True), key=lambda pair: pair[1][1], reverse=True)
    mean_in_flight = sum(c.in_flight for c in candidates) / len(candidates)
    bound = ATTRACTION_BOUND * mean_in_flight + ATTRACTION_SLACK
    for position, (candidate, _) in enumerate(in_order):
        if candidate.in_flight < bound:
            return Choice(candidate.uid, "session" if position == 0 else "session-overflow", scores)
    raise AssertionError("somebody has no more than the mean in flight")


def _affinity(candidate: Candidate, seed: int) -> float:
    """Highest for a candidate in proportion to its weight (a race of exponential clocks)."""
    fraction = (xxhash.xxh3_64_intdigest(candidate.uid.encode(), seed) + 0.5) / 2**64
    return candidate.weight / -math.log(fraction)
