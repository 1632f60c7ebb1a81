"""What is known about one request when it ends: its id, its log line, its span. Never what was asked or answered."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from aiohttp import web
from modelfleet_api.protocol import HEADER_REQUEST_ID

from modelfleet_engine.logs import log_event
from modelfleet_engine.tracing import RequestSpan, Tracer

_SAFE_ID = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass(slots=True)
class RequestRecord:
    """Filled while the request is served. `timeout_seconds` is how long the client gave it, from its arrival."""

    request_id: str
    method: str
    path: str
    arrived_seconds: float = field(default_factory=time.monotonic)
    arrived_unix_ns: int = field(default_factory=time.time_ns)
    model: str | None = None
    choices: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    priority: int | None = None
    timeout_seconds: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reasons: tuple[str, ...] = ()
    queue_seconds: float | None = None
    time_to_first_token_seconds: float | None = None
    error_code: str | None = None

    @classmethod
    def of(cls, request: web.Request) -> RequestRecord:
        """A record with the client's request id, if that is fit for a header and a log, else a new one."""
        given = request.headers.get(HEADER_REQUEST_ID, "")
        request_id = given if _SAFE_ID.fullmatch(given) else uuid.uuid4().hex
        return cls(request_id=request_id, method=request.method, path=request.path)

    def log(self, *, status: int) -> None:
        """One JSON line; fields that do not apply are left out."""
        fields: dict[str, object] = {
            "request_id": self.request_id,
            "method": self.method,
            "path": self.path,
            "status": status,
            "duration_seconds": self._duration_seconds(),
            "model": self.model,
            "choices": self.choices,
            "priority": self.priority,
            "timeout_seconds": _rounded(self.timeout_seconds),
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
            "finish_reasons": self.finish_reasons or None,
            "queue_seconds": _rounded(self.queue_seconds),
            "time_to_first_token_seconds": _rounded(self.time_to_first_token_seconds),
            "error_code": self.error_code,
        }
        log_event("request", **{name: value for name, value in fields.items() if value is not None})

    def trace(self, tracer: Tracer, headers: Mapping[str, str], *, status: int) -> None:
        """The request's span."""
        span = RequestSpan(
            request_id=self.request_id,
            method=self.method,
            path=self.path,
            status=status,
            started_unix_ns=self.arrived_unix_ns,
            duration_seconds=self._duration_seconds(),
            model=self.model,
            choices=self.choices,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            completion_tokens=self.completion_tokens,
            finish_reasons=self.finish_reasons,
            queue_seconds=self.queue_seconds,
            time_to_first_token_seconds=self.time_to_first_token_seconds,
            error_code=self.error_code,
        )
        tracer.record(span, headers)

    def _duration_seconds(self) -> float:
        return round(time.monotonic() - self.arrived_seconds, 4)


def _rounded(seconds: float | None) -> float | None:
    """To a tenth of a millisecond: more is noise."""
    return None if seconds is None else round(seconds, 4)


RECORD = web.RequestKey("record", RequestRecord)
