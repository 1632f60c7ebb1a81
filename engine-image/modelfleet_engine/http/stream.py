"""Writes one answer: as server-sent events or whole. A cut stream always ends with an error event, never silently.

Headers of a stream go out with the first token, so that a failure before it is a proper status code.

A gateway that asks for it (`x-modelfleet-usage: 1`) gets one SSE comment with the usage as the very last line of
each stream that began, after `[DONE]` or after the error event and in the same write, so that a cut answer is billed
like a whole one. Two cases have no comment: before the first token nothing was begun and nothing is billed; where
the connection itself breaks, the gateway counts the chunks it got. A whole answer has its usage in its body.
"""

from __future__ import annotations

import asyncio

import orjson
from aiohttp import web
from modelfleet_api.protocol import USAGE_COMMENT_PREFIX

from modelfleet_engine.errors import GenerationCutError, RequestError
from modelfleet_engine.http.choice import ChoiceDelta
from modelfleet_engine.http.errors import INTERNAL_ERROR_CODE, INTERNAL_ERROR_MESSAGE, cut_body, error_body
from modelfleet_engine.http.generation import RunningCall
from modelfleet_engine.http.keys import SERVING
from modelfleet_engine.http.record import RECORD
from modelfleet_engine.http.responses import AnswerFormat
from modelfleet_engine.logs import log_failure

_DONE = b"data: [DONE]\n\n"
_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    # Asks nginx-like proxies not to collect the stream.
    "X-Accel-Buffering": "no",
}


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


async def write_whole(request: web.Request, running: RunningCall, answer: AnswerFormat) -> web.StreamResponse:
    """Collects the whole answer.

    Raises:
        GenerationCutError: cut; nothing was sent.
        RequestError: the request's deadline passed; nothing was sent.
    """
    choices: dict[int, ChoiceDelta] = {}
    async for batch in running.deltas():
        for delta in batch:
            if delta.index in choices:
                choices[delta.index].extend(delta)
            else:
                choices[delta.index] = delta
    ordered = [choices[index] for index in sorted(choices)]
    usage = running.usage
    options = running.call.options
    if options.logprobs is None and not options.scores_prompt:
        return web.Response(body=answer.whole(ordered, usage), content_type="application/json")
    # Scores of many tokens are megabytes of JSON: made off the event loop.
    pool = request.app[SERVING].tokenizer_pool
    body = await asyncio.get_running_loop().run_in_executor(pool, answer.whole, ordered, usage)
    return web.Response(body=body, content_type="application/json")


async def write_stream(
    request: web.Request, response: web.StreamResponse, running: RunningCall, answer: AnswerFormat
) -> RequestError | GenerationCutError | None:
    """Streams the answer into `response`; returns the error if it was cut after its beginning.

    A bug of ours after the beginning is logged and cuts the stream too: no second response can follow the first.

    Raises:
        GenerationCutError: cut before anything was sent.
        RequestError: the request's deadline passed before anything was sent.
    """
    response.headers.update(_STREAM_HEADERS)
    cut: RequestError | GenerationCutError | None = None
    try:
        await _write_chunks(request, response, running, answer)
        end = _event(answer.usage_chunk(running.usage)) if running.call.options.include_usage else b""
        end += _DONE
    except ConnectionResetError:
        raise
    except Exception as error:
        if not response.prepared:
            raise
        cut = error if isinstance(error, GenerationCutError | RequestError) else _logged_bug(request, error)
        end = _event(_error_body(cut))
    if running.call.options.usage_comment:
        end += USAGE_COMMENT_PREFIX.encode() + orjson.dumps(running.usage) + b"\n\n"
    await response.write(end)
    await response.write_eof()
    return cut


async def _write_chunks(
    request: web.Request, response: web.StreamResponse, running: RunningCall, answer: AnswerFormat
) -> None:
    options = running.call.options
    usage = running.usage
    loop = asyncio.get_running_loop()
    async for batch in running.deltas():
        if options.continuous_usage_stats:
            usage = running.usage
        if options.scores_prompt and any(delta.is_first for delta in batch):
            pool = request.app[SERVING].tokenizer_pool
            chunks = [await loop.run_in_executor(pool, answer.chunk, delta, usage) for delta in batch]
        else:
            chunks = [answer.chunk(delta, usage) for delta in batch]
        if not response.prepared:
            chunks = [*answer.opening_chunks(), *chunks]
            await response.prepare(request)
        # All tokens of one moment in one write.
        await response.write(b"".join([_event(chunk) for chunk in chunks]))


def _error_body(error: RequestError | GenerationCutError) -> bytes:
    if isinstance(error, GenerationCutError):
        return cut_body(error)
    return error_body(message=error.message, error_type=error.error_type, param=error.param, code=error.code)


def _logged_bug(request: web.Request, error: Exception) -> GenerationCutError:
    log_failure(f"request {request[RECORD].request_id} failed", error)
    return GenerationCutError(INTERNAL_ERROR_MESSAGE, status=500, code=INTERNAL_ERROR_CODE)
