"""OpenAI-shaped error bodies: one shape for every refusal, and for errors inside a stream."""

from __future__ import annotations

import orjson
from aiohttp import web
from modelfleet_api.protocol import HEADER_DRAINING, HEADER_KEY

from modelfleet_engine.errors import GenerationCutError, RequestError

SERVER_ERROR = "server_error"
INTERNAL_ERROR_MESSAGE = "Internal server error."
INTERNAL_ERROR_CODE = "internal_error"
DRAINING_CODE = "engine_draining"


def error_body(*, message: str, error_type: str, param: str | None = None, code: str | None = None) -> bytes:
    """`{"error": {...}}` with OpenAI's four keys."""
    return orjson.dumps({"error": {"message": message, "type": error_type, "param": param, "code": code}})


def request_error_response(error: RequestError) -> web.Response:
    """The answer to a request that is not served."""
    body = error_body(message=error.message, error_type=error.error_type, param=error.param, code=error.code)
    response = web.Response(status=error.status, body=body, content_type="application/json")
    if error.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(error.retry_after_seconds)
    if error.status == 504:
        # OpenAI's clients ask again after any 5xx unless told not to: the deadline would be met three times.
        response.headers["x-should-retry"] = "false"
    return response


def cut_body(error: GenerationCutError) -> bytes:
    """The body for a generation that was cut: a whole answer's, or an SSE event's data."""
    return error_body(message=error.message, error_type=SERVER_ERROR, code=error.code)


def cut_response(error: GenerationCutError) -> web.Response:
    """The answer where nothing was sent yet; one that a drain cut may be asked for elsewhere."""
    response = web.Response(status=error.status, body=cut_body(error), content_type="application/json")
    if error.code == DRAINING_CODE:
        response.headers[HEADER_DRAINING] = "1"
    return response


def server_error_response() -> web.Response:
    """The answer to a bug of ours; the details are in the log, under the request's id."""
    body = error_body(message=INTERNAL_ERROR_MESSAGE, error_type=SERVER_ERROR, code=INTERNAL_ERROR_CODE)
    return web.Response(status=500, body=body, content_type="application/json")


def draining_response() -> web.Response:
    """Tells routers to try elsewhere: this engine ends soon, the request was not begun."""
    response = request_error_response(
        RequestError(
            "This engine is shutting down; retry elsewhere.", status=503, code=DRAINING_CODE, retry_after_seconds=1
        )
    )
    response.headers[HEADER_DRAINING] = "1"
    return response


def model_loading_error(phase: str) -> RequestError:
    """Not yet: the model is still loading."""
    return RequestError(
        f"The model is not loaded yet (phase: {phase}).", status=503, code="model_loading", retry_after_seconds=1
    )


def key_error() -> RequestError:
    """Whoever asks has not shown the key of the gateways."""
    return RequestError(
        f"This engine answers its gateways only: the header {HEADER_KEY} is missing or wrong.",
        status=401,
        code="invalid_api_key",
    )
