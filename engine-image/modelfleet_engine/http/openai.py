"""The OpenAI endpoints: a body in, an answer out. What happens in between is told in order here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import orjson
from aiohttp import web
from modelfleet_api.protocol import HEADER_REQUEST_ID

from modelfleet_engine.errors import RequestError
from modelfleet_engine.http import calls
from modelfleet_engine.http.generation import RunningCall
from modelfleet_engine.http.keys import SERVING
from modelfleet_engine.http.record import RECORD
from modelfleet_engine.http.responses import AnswerFormat, ChatFormat, CompletionFormat
from modelfleet_engine.http.schema import ChatCompletionBody, CompletionBody, SamplingBody
from modelfleet_engine.http.stream import write_stream, write_whole
from modelfleet_engine.http.validate import parse_body
from modelfleet_engine.serving import ReadyModel, Serving

Body = TypeVar("Body", bound=SamplingBody)
MakeCall = Callable[[Serving, ReadyModel, Body], Awaitable[calls.Call]]


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """`POST /v1/chat/completions`."""
    return await _complete(request, ChatCompletionBody, calls.chat_call, ChatFormat())


async def completions(request: web.Request) -> web.StreamResponse:
    """`POST /v1/completions`."""
    return await _complete(request, CompletionBody, calls.completion_call, CompletionFormat())


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
    request: web.Request, body_type: type[Body], make_call: MakeCall[Body], answer: AnswerFormat
) -> web.StreamResponse:
    """Parse, prepare, run, answer."""
    serving = request.app[SERVING]
    record = request[RECORD]
    ready = _ready_model(serving)
    body = parse_body(await _read(request), body_type)
    record.model = body.model
    calls.check_model(serving, body.model)
    call = await make_call(serving, ready, body)
    record.prompt_tokens = call.prompt_tokens
    with RunningCall(call, ready, serving.counts, arrived_seconds=record.arrived_seconds) as running:
        try:
            if not call.is_stream:
                return await write_whole(running, answer)
            response = web.StreamResponse(headers={HEADER_REQUEST_ID: record.request_id})
            if serving.drain.is_draining:
                response.force_close()
            cut = await write_stream(request, response, running, answer)
        finally:
            record.completion_tokens = running.completion_tokens
            record.time_to_first_token_seconds = running.first_token_seconds
    if cut is not None:
        record.error_code = cut.code
        serving.counts.cut += 1
    return response


async def _read(request: web.Request) -> bytes:
    """The whole body. Raises RequestError 400 if it is not what its headers say, such as gzip."""
    try:
        return await request.read()
    except web.RequestPayloadError as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"The request body cannot be read: {reason}", code="invalid_body") from error


def _ready_model(serving: Serving) -> ReadyModel:
    if serving.model is None:
        raise RequestError(
            f"The model is not loaded yet (phase: {serving.phase}).",
            status=503,
            code="model_loading",
            retry_after_seconds=1,
        )
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
