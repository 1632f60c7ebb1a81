"""The gateway's side towards one client: its body in, an answer or a stream out, errors in whichever form fits.

Once a stream has begun (a heartbeat while the request was held counts) every error is an event of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from aiohttp import web
from modelfleet_api.protocol import HEADER_REQUEST_ID

from modelfleet_gateway.errors import GatewayError, sse_event

HEARTBEAT = b": heartbeat\n\n"
_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    # Asks nginx-like proxies not to collect the stream.
    "X-Accel-Buffering": "no",
}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


async def read_body(request: web.BaseRequest, *, limit_bytes: int, timeout_seconds: float) -> bytes:
    """The whole body, never more of it than the limit.

    Raises:
        GatewayError: 413 too large, 408 too slow, 400 broken.
    """
    announced = request.content_length
    if announced is not None and announced > limit_bytes:
        raise _too_large(limit_bytes)
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(_CONTINUE)
        # What was sent is no part of the answer.
        request.writer.output_size = 0
    if not request.can_read_body:
        return b""
    parts: list[bytes] = []
    size = 0
    read = request.content.readany
    try:
        async with asyncio.timeout(timeout_seconds):
            while chunk := await read():
                size += len(chunk)
                if size > limit_bytes:
                    raise _too_large(limit_bytes)
                parts.append(chunk)
    except TimeoutError:
        message = f"The request body did not arrive within {timeout_seconds:g} s."
        raise GatewayError(408, message, "body_timeout") from None
    except web.RequestPayloadError as error:
        raise GatewayError(400, "The request body is broken.", "invalid_body") from error
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(limit_bytes: int) -> GatewayError:
    return GatewayError(413, f"The request body is larger than {limit_bytes} bytes.", "body_too_large")


class Exchange:
    """One client's request. `headers` are added to whatever answer there will be, until it begins."""

    __slots__ = ("_request", "_stream", "closes", "headers", "status")

    def __init__(self, request: web.BaseRequest, *, request_id: str) -> None:
        self._request = request
        self._stream: web.StreamResponse | None = None
        self.headers: dict[str, str] = {HEADER_REQUEST_ID: request_id, "Server": "modelfleet"}
        # Of the answer, as the client sees it.
        self.status = 0
        # The gateway ends: nothing more on this connection.
        self.closes = False

    @property
    def has_begun(self) -> bool:
        """Whether the client has got the head of a stream."""
        return self._stream is not None

    async def begin_stream(self, headers: Mapping[str, str] | None = None) -> None:
        """Makes the head of a stream ready; it goes out with the first bytes. Nothing if that was done before."""
        if self._stream is not None:
            return
        self.status = 200
        stream = web.StreamResponse(status=200, headers={**_STREAM_HEADERS, **(headers or {}), **self.headers})
        if self.closes:
            stream.force_close()
        await stream.prepare(self._request)
        self._stream = stream

    async def write(self, data: bytes) -> None:
        """One write of a stream that has begun. Raises ConnectionResetError if the client is gone."""
        assert self._stream is not None, "a stream begins with its head"
        await self._stream.write(data)

    async def heartbeat(self) -> None:
        """A sign of life for whoever waits for a stream."""
        await self.begin_stream()
        await self.write(HEARTBEAT)

    async def end_stream(self) -> web.StreamResponse:
        """The stream is complete."""
        assert self._stream is not None, "a stream ends after its beginning"
        await self._stream.write_eof()
        return self._stream

    async def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> web.StreamResponse:
        """A whole answer. In a stream that has begun only its body can be told: as an event."""
        if self._stream is not None:
            await self._stream.write(sse_event(body.replace(b"\n", b" ")))
            return await self.end_stream()
        self.status = status
        response = web.Response(status=status, body=body, headers={**headers, **self.headers})
        if self.closes:
            response.force_close()
        return response

    async def refuse(self, error: GatewayError) -> web.StreamResponse:
        """An error of the gateway's own."""
        if self._stream is not None:
            await self._stream.write(error.event)
            return await self.end_stream()
        headers = {"Content-Type": "application/json", **error.response_headers()}
        if error.status in (408, 413):
            # What is left of the body is not worth reading.
            self.closes = True
        return await self.answer(error.status, error.body, headers)
