"""Probes and metrics: `/healthz`, `/readyz`, `/metrics`. Plain HTTP on a port of its own.

Must not decide health itself: it asks `HealthChecks`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthChecks:
    """Each returns what is wrong, or None.

    `alive` fails where only a restart helps (a stuck worker); `ready` until every cache has synced. A replica that
    does not lead is ready: it stands by.
    """

    alive: Callable[[], str | None]
    ready: Callable[[], str | None]


class HttpServer:
    """Started before anything else, so that probes are answered while the caches fill."""

    def __init__(self, *, checks: HealthChecks, registry: CollectorRegistry) -> None:
        self._checks = checks
        self._registry = registry
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)

    async def start(self, *, port: int) -> int:
        """Listens on all addresses; returns the port (of interest where 0 was asked)."""
        await self._runner.setup()
        await web.TCPSite(self._runner, host=None, port=port).start()
        # With port 0 IPv4 and IPv6 get different ones; an IPv4 address is a pair.
        addresses = sorted(self._runner.addresses, key=len)
        bound: int = addresses[0][1]
        return bound

    async def close(self) -> None:
        """Stops listening."""
        await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        return _answer(self._checks.alive())

    async def _readyz(self, _: web.Request) -> web.Response:
        return _answer(self._checks.ready())

    async def _metrics(self, _: web.Request) -> web.Response:
        # aiohttp wants the charset apart from the content type; this header is the exposition format's own.
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _answer(problem: str | None) -> web.Response:
    return web.Response(text="ok\n") if problem is None else web.Response(status=503, text=f"{problem}\n")
