"""The aiohttp application: routes, and what every request goes through on its way in and out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from aiohttp import web
from modelfleet_api.protocol import HEADER_DRAINING, HEADER_REQUEST_ID

from modelfleet_engine.errors import GenerationCutError, RequestError
from modelfleet_engine.http import health, openai
from modelfleet_engine.http.errors import cut_response, request_error_response, server_error_response
from modelfleet_engine.http.keys import METRICS, SERVING
from modelfleet_engine.http.record import RECORD, RequestRecord
from modelfleet_engine.logs import log_failure
from modelfleet_engine.metrics import Metrics
from modelfleet_engine.serving import Serving

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# A prompt of a million tokens is about this long; beyond it a body only blocks the event loop.
MAX_BODY_BYTES = 8 * 1024 * 1024
# nginx's number for "the client went away": it never reaches anybody, it is for the log.
STATUS_CLIENT_CLOSED = 499
# Neither logged nor counted nor drained.
PROBE_PATHS = frozenset({"/health", "/ready", "/metrics", "/load"})


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
            web.get("/v1/models", openai.models),
            web.get("/v1/models/{name:.+}", openai.model),
            web.post("/v1/chat/completions", openai.chat_completions),
            web.post("/v1/completions", openai.completions),
        ]
    )
    return app


@web.middleware
async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Gives the request an id, refuses it while draining, turns errors into bodies, logs one line."""
    if request.path in PROBE_PATHS:
        return await handler(request)
    serving = request.app[SERVING]
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
    return response


async def _respond(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The handler's answer, or the body that explains why there is none."""
    record = request[RECORD]
    serving = request.app[SERVING]
    try:
        if serving.drain.is_refusing:
            return _draining_response(serving, record)
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
            message = f"The request body is larger than {MAX_BODY_BYTES} bytes."
        return request_error_response(RequestError(message, status=error.status, code="http_error"))
    except (asyncio.CancelledError, ConnectionResetError):
        raise
    except Exception as error:
        log_failure(f"request {record.request_id} failed", error)
        record.error_code = "internal_error"
        return server_error_response()


def _draining_response(serving: Serving, record: RequestRecord) -> web.Response:
    """Tells routers to try elsewhere: this engine ends soon, the request was not begun."""
    serving.counts.count_refused("draining")
    record.error_code = "engine_draining"
    response = request_error_response(
        RequestError(
            "This engine is shutting down; retry elsewhere.",
            status=503,
            code="engine_draining",
            retry_after_seconds=1,
        )
    )
    response.headers[HEADER_DRAINING] = "1"
    return response
