"""The access log: one JSON line per request, without a word of what was asked or answered.

Lines are collected and written a few times a second: a write per request costs more than making the line.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import BinaryIO

import orjson

FLUSH_SECONDS = 0.2
# Written at once beyond this: a burst must not wait in memory.
MAX_HELD_LINES = 512


@dataclass(slots=True)
class AccessRecord:
    """What is known of one request when it ends. Filled while it is served; None is left out of the line."""

    request_id: str
    method: str
    path: str
    arrived_seconds: float
    tenant: str | None = None
    model: str | None = None
    endpoint: str | None = None
    is_stream: bool | None = None
    retries: int = 0
    held_seconds: float | None = None
    first_byte_seconds: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    error_code: str | None = None


class AccessLog:
    """Writes records to a stream; `close` writes what is left."""

    def __init__(self, output: BinaryIO | None = None) -> None:
        self._output = sys.stdout.buffer if output is None else output
        self._lines: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None

    def write(self, record: AccessRecord, *, status: int, now: float) -> None:
        """Adds one line; it is on its way within FLUSH_SECONDS."""
        fields: dict[str, object] = {
            "time": datetime.now(UTC),
            "level": "info",
            "event": "request",
            "request_id": record.request_id,
            "method": record.method,
            "path": record.path,
            "status": status,
            "duration_seconds": round(now - record.arrived_seconds, 4),
            "tenant": record.tenant,
            "model": record.model,
            "endpoint": record.endpoint,
            "stream": record.is_stream,
            "retries": record.retries or None,
            "held_seconds": _rounded(record.held_seconds),
            "first_byte_seconds": _rounded(record.first_byte_seconds),
            "prompt_tokens": record.prompt_tokens,
            "cached_tokens": record.cached_tokens,
            "completion_tokens": record.completion_tokens,
            "error_code": record.error_code,
        }
        line = {name: value for name, value in fields.items() if value is not None}
        self._lines.append(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z))
        if len(self._lines) >= MAX_HELD_LINES:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)

    def flush(self) -> None:
        """Writes what was collected."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines = self._lines, []
        if lines:
            self._output.write(b"".join(lines))
            self._output.flush()


def _rounded(seconds: float | None) -> float | None:
    """To a tenth of a millisecond: more is noise."""
    return None if seconds is None else round(seconds, 4)
