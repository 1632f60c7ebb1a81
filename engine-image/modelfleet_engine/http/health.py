"""Probes and reports: /health, /ready, /metrics, /load. The queue never touches them, the key only /load."""

from __future__ import annotations

import orjson
from aiohttp import web

from modelfleet_engine.http.keys import METRICS, SERVING


def _json(status: int, body: dict[str, object]) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json")


async def health(request: web.Request) -> web.Response:
    """Liveness: 200 while the step loop makes progress, also while loading and draining."""
    reason = request.app[SERVING].unhealthy_reason()
    if reason is not None:
        return _json(503, {"status": "unhealthy", "reason": reason})
    return _json(200, {"status": "ok"})


async def ready(request: web.Request) -> web.Response:
    """Readiness: 200 only when loaded, warmed up and not draining; the body says the phase."""
    serving = request.app[SERVING]
    return _json(200 if serving.is_ready else 503, {"ready": serving.is_ready, "phase": serving.phase_now})


async def metrics(request: web.Request) -> web.Response:
    """Prometheus text."""
    return web.Response(
        body=request.app[METRICS].render(),
        headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
    )


async def load(request: web.Request) -> web.Response:
    """The fleet's own report (`modelfleet_api.protocol.Load`)."""
    report = request.app[SERVING].load()
    return web.Response(body=report.model_dump_json(by_alias=True), content_type="application/json")
