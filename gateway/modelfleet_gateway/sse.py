"""Server-sent events in transit: whole events pass byte for byte, the engine's usage comment is taken out.

PURE. An event that arrives in pieces is passed on when it is whole, so that a stream that breaks never ends in half an
event. What an engine writes in one piece is one piece here too.
"""

from __future__ import annotations

import re
from typing import Any

import orjson
from modelfleet_api.protocol import USAGE_COMMENT_PREFIX

# An event longer than this passes in pieces: it is not worth the memory.
MAX_HELD_BYTES = 1024 * 1024
_USAGE = USAGE_COMMENT_PREFIX.encode()
# At the beginning of a line only: inside an event's JSON the same words are somebody's text.
_END = re.compile(rb'(?:\A|[\r\n])(?:data: ?\[DONE\]|event: ?error\b|data: ?\{\s*"error"\s*:)')
_USAGE_MEMBER = re.compile(rb'"usage" ?: ?\{')
# Two line ends in a row; each may be LF, CRLF or CR, and CRLF is one.
_BOUNDARY = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")


class SseRelay:
    """One stream. `feed` and `finish` return the bytes to pass on.

    `usage` is the comment's object; `events` counts the data events passed on, `has_passed` says whether anything was;
    `is_ended`: the engine itself ended the answer, with [DONE] or an error event. One that stops without is broken.
    """

    __slots__ = ("_held", "_takes_usage_chunk", "events", "has_passed", "is_ended", "usage")

    def __init__(self, *, takes_usage_chunk: bool = False) -> None:
        """`takes_usage_chunk`: the gateway asked for OpenAI's last chunk with the usage, the client did not."""
        self._held = b""
        self._takes_usage_chunk = takes_usage_chunk
        self.usage: dict[str, Any] | None = None
        self.events = 0
        self.has_passed = False
        self.is_ended = False

    def feed(self, chunk: bytes) -> bytes:
        """One chunk from the engine, cut anywhere. b"" while no event is whole."""
        data = self._held + chunk if self._held else chunk
        if data.endswith(b"\n\n"):
            self._held = b""
            return self._pass(data)
        end = self._last_boundary(data)
        self._held = data[end:]
        whole = data[:end]
        if len(self._held) > MAX_HELD_BYTES:
            whole, self._held = data, b""
        return self._pass(whole) if whole else b""

    def finish(self) -> bytes:
        """The engine's stream is over: a last [DONE] or error without its blank line passes, half an event does not."""
        rest, self._held = self._held, b""
        # Blank: the second half of a CRLF that was cut.
        return self._pass(rest) if rest.isspace() or _END.search(rest) is not None else b""

    @staticmethod
    def _last_boundary(data: bytes) -> int:
        if b"\r" not in data:
            found = data.rfind(b"\n\n")
            return found + 2 if found >= 0 else 0
        end = 0
        for match in _BOUNDARY.finditer(data):
            end = match.end()
        return end

    def _pass(self, data: bytes) -> bytes:
        if _USAGE in data:
            data = self._without_usage(data)
        elif self._takes_usage_chunk and _USAGE_MEMBER.search(data) is not None:
            data = self._without_usage_chunk(data)
        # Three searches for words cost less than one for the pattern, which nearly no chunk needs.
        if (b"[DONE]" in data or b'"error"' in data or b"event:" in data) and _END.search(data) is not None:
            self.is_ended = True
        self.has_passed = self.has_passed or bool(data)
        self.events += data.count(b"data: {") + data.count(b"data:{")
        return data

    def _without_usage(self, data: bytes) -> bytes:
        """Takes out each line that begins as the comment does, with the blank line after it."""
        position = 0
        kept = []
        while True:
            start = data.find(_USAGE, position)
            if start < 0:
                break
            if start > 0 and data[start - 1] not in b"\r\n":
                # Inside somebody's text.
                kept.append(data[position : start + len(_USAGE)])
                position = start + len(_USAGE)
                continue
            match = _BOUNDARY.search(data, start)
            end = match.end() if match is not None else len(data)
            self._read_usage(data[start + len(_USAGE) : end])
            kept.append(data[position:start])
            position = end
        kept.append(data[position:])
        return b"".join(kept)

    def _without_usage_chunk(self, data: bytes) -> bytes:
        """Takes out the event that has a usage and no choices; others may have both, or a usage of null."""
        kept = []
        position = 0
        for match in [*_BOUNDARY.finditer(data), None]:
            end = len(data) if match is None else match.end()
            event, position = data[position:end], end
            try:
                chunk = orjson.loads(event.strip().removeprefix(b"data:"))
            except orjson.JSONDecodeError:
                chunk = None
            if isinstance(chunk, dict) and chunk.get("choices") == [] and isinstance(chunk.get("usage"), dict):
                self.usage = chunk["usage"]
            else:
                kept.append(event)
        return b"".join(kept)

    def _read_usage(self, text: bytes) -> None:
        try:
            usage = orjson.loads(text)
        except orjson.JSONDecodeError:
            return
        if isinstance(usage, dict):
            self.usage = usage
