"""Writes one answer: as server-sent events or whole. A cut stream always ends with an error event, never silently.

Headers of a stream go out with the first token, so that a failure before it is a proper status code.
"""

from __future__ import annotations

import orjson
from aiohttp import web

from modelfleet_engine.errors import GenerationCutError
from modelfleet_engine.http.errors import INTERNAL_ERROR_CODE, INTERNAL_ERROR_MESSAGE, cut_body
from modelfleet_engine.http.generation import RunningCall
from modelfleet_engine.http.record import RECORD
from modelfleet_engine.http.responses import AnswerFormat, FinishedChoice, Json
from modelfleet_engine.logs import log_failure

_DONE = b"data: [DONE]\n\n"
_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    # Asks nginx-like proxies not to collect the stream.
    "X-Accel-Buffering": "no",
}


def _event(data: Json) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


async def write_whole(running: RunningCall, answer: AnswerFormat) -> web.StreamResponse:
    """Collects the whole answer. Raises GenerationCutError: nothing was sent then."""
    texts = [""] * len(running.call.requests)
    reasons = [""] * len(running.call.requests)
    async for batch in running.deltas():
        for delta in batch:
            texts[delta.index] += delta.text
            reasons[delta.index] = delta.finish_reason or ""
    choices = [
        FinishedChoice(index=index, text=text, finish_reason=reason)
        for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
    ]
    body = orjson.dumps(answer.whole(running.call, choices, running.usage))
    return web.Response(body=body, content_type="application/json")


async def write_stream(
    request: web.Request, response: web.StreamResponse, running: RunningCall, answer: AnswerFormat
) -> GenerationCutError | None:
    """Streams the answer into `response`; returns the error if it was cut after its beginning.

    A bug of ours after the beginning is logged and cuts the stream too: no second response can follow the first.

    Raises:
        GenerationCutError: cut before anything was sent.
    """
    response.headers.update(_STREAM_HEADERS)
    try:
        await _write_answer(request, response, running, answer)
    except ConnectionResetError:
        raise
    except Exception as error:
        if not response.prepared:
            raise
        cut = error if isinstance(error, GenerationCutError) else _logged_bug(request, error)
        await response.write(b"data: " + cut_body(cut) + b"\n\n")
        await response.write_eof()
        return cut
    await response.write_eof()
    return None


async def _write_answer(
    request: web.Request, response: web.StreamResponse, running: RunningCall, answer: AnswerFormat
) -> None:
    call = running.call
    async for batch in running.deltas():
        frames = [_event(answer.chunk(call, delta)) for delta in batch]
        if not response.prepared:
            await response.prepare(request)
            frames = [_event(chunk) for chunk in answer.opening_chunks(call)] + frames
        # All tokens of one moment in one write.
        await response.write(b"".join(frames))
    if call.include_usage:
        await response.write(_event(answer.usage_chunk(call, running.usage)))
    await response.write(_DONE)


def _logged_bug(request: web.Request, error: Exception) -> GenerationCutError:
    log_failure(f"request {request[RECORD].request_id} failed", error)
    return GenerationCutError(INTERNAL_ERROR_MESSAGE, status=500, code=INTERNAL_ERROR_CODE)
