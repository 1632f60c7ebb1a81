"""The aiohttp application: routes, and what every request goes through on its way in and out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from aiohttp import web
from modelfleet_api.protocol import HEADER_KEY, HEADER_REQUEST_ID

from modelfleet_engine.errors import GenerationCutError, RequestError
from modelfleet_engine.http import health, kv_events, openai
from modelfleet_engine.http.errors import (
    DRAINING_CODE,
    cut_response,
    draining_response,
    key_error,
    request_error_response,
    server_error_response,
)
from modelfleet_engine.http.keys import METRICS, SERVING
from modelfleet_engine.http.openapi import openapi
from modelfleet_engine.http.record import RECORD, RequestRecord
from modelfleet_engine.http.tokenize import add_tokenizer_routes
from modelfleet_engine.logs import log_failure
from modelfleet_engine.metrics import Metrics
from modelfleet_engine.serving import MAX_BODY_BYTES, Serving

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# nginx's number for "the client went away": it never reaches anybody, it is for the log.
STATUS_CLIENT_CLOSED = 499
# For the kubelet and Prometheus: open to everybody, whatever the key.
PROBE_PATHS = frozenset({"/health", "/ready", "/metrics"})
# For gateways and the autoscaler, all the time: behind the key, but neither logged nor counted nor drained.
REPORT_PATHS = frozenset({"/load", "/kv-events"})


def build_app(serving: Serving) -> web.Application:
    """All routes over one `Serving`."""
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_answer])
    app[SERVING] = serving
    app[METRICS] = Metrics(serving)
    app.add_routes(
        [
            web.get("/health", health.health),
            web.get("/ready", health.ready),
            web.get("/metrics", health.metrics),
            web.get("/load", health.load),
            web.get("/kv-events", kv_events.kv_events),
            web.get("/openapi.json", openapi),
            web.get("/v1/models", openai.models),
            web.get("/v1/models/{name:.+}", openai.model),
            web.post("/v1/chat/completions", openai.chat_completions),
            web.post("/v1/completions", openai.completions),
        ]
    )
    add_tokenizer_routes(app)
    return app


@web.middleware
async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Gives the request an id, refuses it while draining, turns errors into bodies, logs one line."""
    if request.path in PROBE_PATHS:
        return await handler(request)
    serving = request.app[SERVING]
    if request.path in REPORT_PATHS:
        is_admitted = serving.internal_key.admits(request.headers.get(HEADER_KEY))
        return await handler(request) if is_admitted else request_error_response(key_error())
    record = RequestRecord.of(request)
    request[RECORD] = record
    with serving.drain.request():
        status = STATUS_CLIENT_CLOSED
        try:
            response = await _respond(request, handler)
            status = response.status
            if not response.prepared:
                response.headers[HEADER_REQUEST_ID] = record.request_id
                if serving.drain.is_draining:
                    response.force_close()
                # Written here, so that the drain counts the request until its last byte.
                await response.prepare(request)
                await response.write_eof()
        finally:
            record.log(status=status)
            if serving.tracer is not None:
                record.trace(serving.tracer, request.headers, status=status)
    return response


async def _respond(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The handler's answer, or the body that explains why there is none."""
    record = request[RECORD]
    serving = request.app[SERVING]
    try:
        if serving.drain.is_refusing:
            serving.counts.count_refused("draining")
            record.error_code = DRAINING_CODE
            return draining_response()
        if not serving.internal_key.admits(request.headers.get(HEADER_KEY)):
            serving.counts.count_refused("unauthorized")
            raise key_error()
        return await handler(request)
    except RequestError as error:
        record.error_code = error.code
        return request_error_response(error)
    except GenerationCutError as error:
        record.error_code = error.code
        serving.counts.cut += 1
        return cut_response(error)
    except web.HTTPException as error:
        # aiohttp's own: no such route, wrong method, body too large.
        message = f"{HTTPStatus(error.status).phrase}: {request.method} {request.path}"
        if error.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            message = f"The request body is larger than {serving.max_body_bytes} bytes."
        response = request_error_response(RequestError(message, status=error.status, code="http_error"))
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except (asyncio.CancelledError, ConnectionResetError):
        raise
    except Exception as error:
        log_failure(f"request {record.request_id} failed", error)
        record.error_code = "internal_error"
        return server_error_response()
