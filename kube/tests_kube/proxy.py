"""A network between client and API server that can be cut, and can make a watch ask for a forgotten version.

The server's answers stay the real ones, its 410 included: only connections and one query parameter are touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType

import aiohttp
from aiohttp import web
from modelfleet_kube.connection import Connection

HOP_HEADERS = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding"})


class CuttableProxy:
    """Plain HTTP on a loopback port in front of `upstream`; an async context manager."""

    def __init__(self, upstream: Connection) -> None:
        self._upstream = upstream
        self._open: set[asyncio.BaseTransport] = set()
        self.is_cut = False
        self.next_watch_is_forgotten = False
        self.watches: list[str] = []
        self.connection = Connection(server="")

    async def __aenter__(self) -> CuttableProxy:
        connector = aiohttp.TCPConnector(ssl=self._upstream.ssl_context(), limit=0)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self._forward)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.connection = Connection(server=f"http://{host}:{port}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()
        await self._runner.cleanup()
        await self._session.close()

    def cut(self) -> None:
        """Breaks every open connection and refuses new ones until `restore`."""
        self.is_cut = True
        self.break_connections()

    def break_connections(self) -> None:
        """Breaks every open connection; new ones work."""
        for transport in list(self._open):
            if isinstance(transport, asyncio.Transport):
                transport.abort()

    def restore(self) -> None:
        """Lets connections through again."""
        self.is_cut = False

    def _query(self, request: web.Request) -> Mapping[str, str]:
        query = dict(request.query)
        if query.get("watch") == "true":
            if self.next_watch_is_forgotten:
                self.next_watch_is_forgotten = False
                query["resourceVersion"] = "1"
            self.watches.append(query["resourceVersion"])
        return query

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        if self.is_cut:
            return web.Response(status=503, text="cut")
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_HEADERS}
        headers.pop("Host", None)
        async with self._session.request(
            request.method,
            f"{self._upstream.server}{request.path}",
            params=self._query(request),
            data=await request.read() or None,
            headers=headers,
            skip_auto_headers=("Content-Type",),
        ) as upstream:
            answer = {name: value for name, value in upstream.headers.items() if name.lower() not in HOP_HEADERS}
            response = web.StreamResponse(status=upstream.status, headers=answer)
            await response.prepare(request)
            assert request.transport is not None
            transport = request.transport
            self._open.add(transport)
            try:
                async for chunk in upstream.content.iter_any():
                    if self.is_cut:
                        # A request that was under way when the connection was cut.
                        self.break_connections()
                        break
                    await response.write(chunk)
                await response.write_eof()
            finally:
                self._open.discard(transport)
            return response
