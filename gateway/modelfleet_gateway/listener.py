"""One listening socket: aiohttp's HTTP/1.1 server, with limits on heads and with errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from modelfleet_gateway.config import BoundsConfig, TimeoutsConfig
from modelfleet_gateway.errors import GatewayError

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
# Bodies are read for at most this long after a refusal, so that a client that still sends sees the answer.
LINGERING_SECONDS = 2.0
_MAX_REASON_CHARACTERS = 200


class _Connection(web.RequestHandler):
    """One client's connection."""

    header_seconds = 15.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Whoever connects and does not send a whole head in time is let go (slowloris)."""
        super().connection_made(transport)
        self._loop.call_later(self.header_seconds, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self._request_count == 0:
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is no proper HTTP is answered like any other mistake, and not logged: anybody can send it."""
        if request.writer.output_size > 0:
            raise ConnectionError("The answer has begun: there is no way to tell.")
        # The parser quotes what it met; that may be a key in a broken header.
        reason = (message or "Internal server error.").splitlines()[0][:_MAX_REASON_CHARACTERS]
        error = GatewayError(status, reason, "invalid_http" if status < 500 else "internal_error")
        response = web.Response(status=status, body=error.body, content_type="application/json")
        response.force_close()
        return response


class _Server(web.Server):
    """Makes connections of our kind."""

    def __init__(self, handler: Handler, *, header_seconds: float, **settings: Any) -> None:
        super().__init__(handler, handler_cancellation=True)
        self._header_seconds = header_seconds
        self._settings = settings

    def __call__(self) -> web.RequestHandler:
        connection = _Connection(self, loop=asyncio.get_running_loop(), **self._settings)
        connection.header_seconds = self._header_seconds
        return connection


class Listener:
    """Open from `start` to `close`."""

    def __init__(self, handler: Handler, *, bounds: BoundsConfig, timeouts: TimeoutsConfig) -> None:
        self._server = _Server(
            handler,
            header_seconds=timeouts.header_seconds,
            keepalive_timeout=timeouts.keep_alive_seconds,
            max_line_size=bounds.header_bytes,
            max_field_size=bounds.header_bytes,
            max_headers=bounds.headers,
            lingering_time=LINGERING_SECONDS,
            access_log=None,
        )
        self._socket: asyncio.Server | None = None

    async def start(self, listen: str) -> int:
        """Listens on host:port and returns the port. Raises OSError."""
        host, _, port = listen.rpartition(":")
        loop = asyncio.get_running_loop()
        self._socket = await loop.create_server(self._server, host.strip("[]") or None, int(port), backlog=4096)
        found: int = self._socket.sockets[0].getsockname()[1]
        return found

    @property
    def connections(self) -> int:
        """Open ones."""
        return len(self._server.connections)

    async def close(self) -> None:
        """Stops listening and ends what is open; whoever must be told something was told before."""
        if self._socket is not None:
            self._socket.close()
        self._server.pre_shutdown()
        await self._server.shutdown(0.5)
