"""What the gateway refuses or ends, and how it tells: OpenAI's error shape, whole or as an SSE event.

PURE: must not know HTTP libraries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson

# nginx's number for "the client went away": it never reaches anybody, it is for log and metrics.
STATUS_CLIENT_CLOSED = 499

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    408: "timeout_error",
    429: "rate_limit_error",
    504: "timeout_error",
}


class ConfigError(Exception):
    """The user's error: this configuration cannot be used. The message names the field, the rule and the value."""


@dataclass(eq=False)
class GatewayError(Exception):
    """Ends one request with a proper answer. `code` is a stable word for programs, `param` the field at fault."""

    status: int
    message: str
    code: str
    param: str | None = None
    retry_after_seconds: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def error_type(self) -> str:
        """OpenAI's `error.type` for this status."""
        if self.status in _TYPES:
            return _TYPES[self.status]
        if self.status < 500:
            return "invalid_request_error"
        return "service_unavailable_error" if self.status == 503 else "server_error"

    @property
    def body(self) -> bytes:
        """`{"error": {...}}` with OpenAI's four keys."""
        detail = {"message": self.message, "type": self.error_type, "param": self.param, "code": self.code}
        return orjson.dumps({"error": detail})

    @property
    def event(self) -> bytes:
        """The same inside a stream that has begun."""
        return sse_event(self.body)

    def response_headers(self) -> dict[str, str]:
        """Beside the content type: when to ask again, and whether."""
        headers = dict(self.headers)
        if self.retry_after_seconds is not None:
            # Whole seconds, at least one: OpenAI's clients read nothing finer.
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_seconds)))
        if self.status == 504:
            # OpenAI's clients ask again after any 5xx unless told not to: the deadline would be met three times.
            headers["x-should-retry"] = "false"
        return headers


def sse_event(data: bytes) -> bytes:
    """One server-sent event without a name."""
    return b"data: " + data + b"\n\n"
