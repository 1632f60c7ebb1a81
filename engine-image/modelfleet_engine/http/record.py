"""What is known about one request when it ends: its id and its log line."""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass, field

from aiohttp import web
from modelfleet_api.protocol import HEADER_REQUEST_ID

from modelfleet_engine.logs import log_event

_SAFE_ID = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass(slots=True)
class RequestRecord:
    """Filled while the request is served."""

    request_id: str
    method: str
    path: str
    arrived_seconds: float = field(default_factory=time.monotonic)
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
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
            "duration_seconds": round(time.monotonic() - self.arrived_seconds, 4),
            "model": self.model,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "time_to_first_token_seconds": self.time_to_first_token_seconds,
            "error_code": self.error_code,
        }
        log_event("request", **{name: value for name, value in fields.items() if value is not None})


RECORD = web.RequestKey("record", RequestRecord)
