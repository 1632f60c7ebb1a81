"""The OpenAI endpoints: a body in, an answer out. What happens in between is told in order here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import orjson
from aiohttp import web
from modelfleet_api.protocol import HEADER_REQUEST_ID

from modelfleet_engine.errors import GenerationCutError, RequestError
from modelfleet_engine.http import calls
from modelfleet_engine.http.call import Call
from modelfleet_engine.http.errors import model_loading_error
from modelfleet_engine.http.generation import RunningCall
from modelfleet_engine.http.headers import CallHeaders, read_call_headers
from modelfleet_engine.http.keys import SERVING
from modelfleet_engine.http.record import RECORD, RequestRecord
from modelfleet_engine.http.responses import AnswerFormat, ChatFormat, CompletionFormat
from modelfleet_engine.http.schema import ChatCompletionBody, CompletionBody, SamplingBody, StrictBody
from modelfleet_engine.http.stream import write_stream, write_whole
from modelfleet_engine.http.validate import parse_body
from modelfleet_engine.serving import ReadyModel, Serving

Body = TypeVar("Body", bound=SamplingBody)
AnyBody = TypeVar("AnyBody", bound=StrictBody)
MakeCall = Callable[[Serving, ReadyModel, Body, CallHeaders], Awaitable[Call]]

# Longer bodies are parsed off the event loop: of this length, about a millisecond; of megabytes, a second.
LONG_BODY_BYTES = 64 * 1024
# The longest body there may be comes in this time over 5 Mbit/s; a client that stalls would hold up a drain.
BODY_SECONDS = 60.0


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """`POST /v1/chat/completions`."""
    return await _complete(request, ChatCompletionBody, calls.chat_call, ChatFormat)


async def completions(request: web.Request) -> web.StreamResponse:
    """`POST /v1/completions`."""
    return await _complete(request, CompletionBody, calls.completion_call, CompletionFormat)


async def models(request: web.Request) -> web.Response:
    """`GET /v1/models`: the model under its served name."""
    serving = request.app[SERVING]
    card = _model_card(serving, serving.config.served_model_name)
    return _json({"object": "list", "data": [card]})


async def model(request: web.Request) -> web.Response:
    """`GET /v1/models/{name}`: by served name or canonical id."""
    serving = request.app[SERVING]
    name = request.match_info["name"]
    calls.check_model(serving, name)
    return _json(_model_card(serving, name))


async def _complete(
    request: web.Request, body_type: type[Body], make_call: MakeCall[Body], format_type: type[AnswerFormat]
) -> web.StreamResponse:
    """Parse, prepare, run, answer."""
    serving = request.app[SERVING]
    record = request[RECORD]
    ready = ready_model(serving)
    body = await read_body(request, body_type)
    headers = read_call_headers(request.headers, arrived_seconds=record.arrived_seconds)
    record.model = body.model
    calls.check_model(serving, body.model)
    call = await make_call(serving, ready, body, headers)
    _note_call(record, call)
    answer = format_type(call, ready.tokenizer)
    with RunningCall(call, ready, serving.counts, arrived_seconds=record.arrived_seconds) as running:
        try:
            if not call.options.is_stream:
                return await write_whole(request, running, answer)
            response = web.StreamResponse(headers={HEADER_REQUEST_ID: record.request_id})
            if serving.drain.is_draining:
                response.force_close()
            cut = await write_stream(request, response, running, answer)
        finally:
            _note_answer(record, running)
    if cut is not None:
        record.error_code = cut.code
        # A deadline of its own is the request's end, not ours.
        serving.counts.cut += isinstance(cut, GenerationCutError)
    return response


def _note_call(record: RequestRecord, call: Call) -> None:
    first = call.requests[0]
    record.choices = len(call.requests)
    record.max_tokens = first.max_tokens
    record.temperature = first.sampling.temperature
    record.top_p = first.sampling.top_p
    record.priority = first.priority
    if first.deadline_seconds is not None:
        record.timeout_seconds = first.deadline_seconds - record.arrived_seconds
    record.prompt_tokens = call.prompt_tokens


def _note_answer(record: RequestRecord, running: RunningCall) -> None:
    record.cached_tokens = running.cached_tokens
    record.completion_tokens = running.completion_tokens
    record.finish_reasons = running.finish_reasons
    record.queue_seconds = running.queue_seconds
    record.time_to_first_token_seconds = running.first_token_seconds


async def read_body(request: web.Request, body_type: type[AnyBody]) -> AnyBody:
    """The whole body, checked.

    Raises:
        RequestError: 400, it is wrong or not what its headers say, such as gzip; 408, it does not come.
    """
    serving = request.app[SERVING]
    try:
        async with asyncio.timeout(BODY_SECONDS):
            raw = await request.clone(client_max_size=serving.max_body_bytes).read()
    except TimeoutError as error:
        raise RequestError(
            f"The request body did not come within {BODY_SECONDS:g} s.", status=408, code="body_timeout"
        ) from error
    except web.RequestPayloadError as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"The request body cannot be read: {reason}", code="invalid_body") from error
    if len(raw) <= LONG_BODY_BYTES:
        return parse_body(raw, body_type)
    return await asyncio.get_running_loop().run_in_executor(serving.tokenizer_pool, parse_body, raw, body_type)


def ready_model(serving: Serving) -> ReadyModel:
    """The model, or RequestError 503 while there is none yet."""
    if serving.model is None:
        raise model_loading_error(serving.phase)
    return serving.model


def _model_card(serving: Serving, name: str) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": serving.created_unix_seconds,
        "owned_by": "modelfleet",
        "root": serving.config.served_model_name,
        "max_model_len": None if serving.model is None else serving.model.max_model_len,
    }


def _json(body: dict[str, object]) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")
