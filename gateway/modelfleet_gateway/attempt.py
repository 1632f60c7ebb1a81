"""One engine's try at a call: what its answer, or the lack of one, means for the call and for the engine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from aiohttp import web
from modelfleet_api.protocol import HEADER_DRAINING

from modelfleet_gateway import refusals
from modelfleet_gateway.billing import bill, read_usage, usage_of_answer
from modelfleet_gateway.call import Call, answer_headers
from modelfleet_gateway.errors import GatewayError
from modelfleet_gateway.exchange import Exchange
from modelfleet_gateway.placement import Grant
from modelfleet_gateway.sse import SseRelay
from modelfleet_gateway.upstream import Answer, Failure, UpstreamError

# A whole answer is kept until its end, so that one that breaks can be asked for elsewhere.
MAX_ANSWER_BYTES = 256 * 1024 * 1024
# "I am full" and "not now": another engine may have room.
_BUSY_STATUSES = frozenset({429, 503})
_TRACED_SCORES = 8


class Loss(Enum):
    """What became of an attempt that failed, which says what another one costs."""

    # Nothing was begun: the engine drains, or nobody listens.
    NOT_BEGUN = auto()
    # The engine went away with the request: not the beginning of a storm, but perhaps the request's own doing.
    LOST = auto()
    # The engine is slow or full: asking others makes the fleet's load larger.
    REFUSED = auto()


@dataclass(slots=True)
class Retry:
    """An attempt that failed before anything was passed on, so that another may be made."""

    loss: Loss
    error: GatewayError
    # What the engine itself said, for the client if there is no other attempt.
    answered: tuple[int, bytes, Mapping[str, str]] | None = None


async def pass_on(call: Call, exchange: Exchange, grant: Grant, answer: Answer) -> web.StreamResponse | Retry:
    """Gives the client an engine's answer, or says why it should come from another.

    Raises:
        UpstreamError: the answer broke before anything was passed on.
        GatewayError: the request's own time is over.
    """
    if answer.status == 503 and HEADER_DRAINING in answer.headers:
        return _draining(call, grant)
    if call.wants_trace:
        exchange.headers.update(trace_headers(grant))
    if answer.status == 200 and answer.headers.get("Content-Type", "").startswith("text/event-stream"):
        return await _pass_stream(call, exchange, grant, answer)
    body = await answer.read_all(limit_bytes=MAX_ANSWER_BYTES)
    passed = (answer.status, body, answer_headers(answer.headers))
    if answer.status in _BUSY_STATUSES:
        return Retry(Loss.REFUSED, _unavailable("The engine has no room."), answered=passed)
    note_outcome(call, grant, is_success=answer.status < 500)
    if answer.status == 200:
        _note_first_byte(call, grant)
        bill(call, usage_of_answer(body), fallback_tokens=int(call.job.prompt_tokens))
    return await exchange.answer(*passed)


async def _pass_stream(call: Call, exchange: Exchange, grant: Grant, answer: Answer) -> web.StreamResponse | Retry:
    """Chunk by chunk, each in one write as it came; a stream that breaks ends with an error event."""
    relay = SseRelay(takes_usage_chunk=call.takes_usage_chunk(grant.endpoint.uid))
    failure: UpstreamError | None = None
    try:
        await _relay(call, exchange, grant, answer, relay=relay)
    except UpstreamError as error:
        failure = error
    finally:
        if relay.has_passed:
            tokens = int(call.job.prompt_tokens) + relay.events
            bill(call, read_usage(relay.usage), fallback_tokens=tokens)
    if relay.is_ended:
        # A connection that breaks after the last event has done its work.
        note_outcome(call, grant, is_success=True)
        return await exchange.end_stream()
    failure = failure or UpstreamError(Failure.BROKEN, "the stream stopped without an end")
    if not relay.has_passed:
        raise failure
    call.pool.statistics.cut_streams += 1
    refusal = failed(call, grant, failure).error
    call.record.error_code = refusal.code
    return await exchange.refuse(refusal)


async def _relay(call: Call, exchange: Exchange, grant: Grant, answer: Answer, *, relay: SseRelay) -> None:
    gaps = call.pool.statistics.token_gap_seconds
    previous = None
    while True:
        chunk = await answer.read_chunk()
        data = relay.feed(chunk) if chunk else relay.finish()
        if data:
            now = time.monotonic()
            if previous is None:
                await exchange.begin_stream(answer_headers(answer.headers))
                _note_first_byte(call, grant)
            else:
                gaps.add(now - previous)
            previous = now
            await exchange.write(data)
        if not chunk:
            return


def failed(call: Call, grant: Grant, error: UpstreamError) -> Retry:
    """An answer that did not come, or not whole. Raises GatewayError where the request's own time is over."""
    if error.failure is Failure.DEADLINE:
        raise refusals.deadline_over()
    note_outcome(call, grant, is_success=False)
    if error.failure is Failure.CONNECT:
        # Nobody listens there: out of the way until a probe finds it again.
        state = call.pool.states.get(grant.endpoint.uid)
        if state is not None:
            state.is_ready = False
        return Retry(Loss.NOT_BEGUN, _cut(error))
    return Retry(Loss.LOST if error.failure is Failure.BROKEN else Loss.REFUSED, _cut(error))


def _draining(call: Call, grant: Grant) -> Retry:
    """It has not begun: elsewhere, and neither budget nor circuit hear of it."""
    state = call.pool.states.get(grant.endpoint.uid)
    if state is not None:
        state.is_refusing = True
    return Retry(Loss.NOT_BEGUN, _unavailable("All engines are shutting down."))


def note_outcome(call: Call, grant: Grant, *, is_success: bool) -> None:
    """Tells the engine's circuit."""
    state = call.pool.states.get(grant.endpoint.uid)
    if state is not None and is_success:
        state.circuit.succeeded(time.monotonic())
    elif state is not None:
        state.circuit.failed(time.monotonic())


def _note_first_byte(call: Call, grant: Grant) -> None:
    call.forget_bodies()
    now = time.monotonic()
    call.pool.book.first_token(grant.endpoint.uid, call.job.id, now)
    call.record.first_byte_seconds = now - call.record.arrived_seconds
    call.pool.statistics.first_token_seconds.add(call.record.first_byte_seconds)


def trace_headers(grant: Grant) -> dict[str, str]:
    """Why this engine: for whoever asked with `x-modelfleet-trace: 1`."""
    best = sorted(grant.choice.scores, key=lambda pair: -pair[1])[:_TRACED_SCORES]
    return {
        "x-modelfleet-endpoint": grant.endpoint.uid,
        "x-modelfleet-reason": grant.choice.reason,
        "x-modelfleet-matched-blocks": f"{grant.matched_blocks}/{len(grant.job.blocks)}",
        "x-modelfleet-scores": ", ".join(f"{uid}={score:.1f}" for uid, score in best),
    }


def _unavailable(message: str) -> GatewayError:
    return GatewayError(503, message, "engine_unavailable", retry_after_seconds=1.0)


def _cut(error: UpstreamError) -> GatewayError:
    if error.failure in (Failure.FIRST_BYTE_TIMEOUT, Failure.IDLE_TIMEOUT):
        return GatewayError(504, "The engine did not answer in time.", f"engine_{error.failure}")
    return GatewayError(502, "The connection to the engine broke.", "engine_lost", retry_after_seconds=1.0)
