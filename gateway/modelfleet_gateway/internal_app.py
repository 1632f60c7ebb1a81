"""The internal listener: probes and metrics for everybody there, `/internal/*` behind the shared key."""

from __future__ import annotations

import math

import orjson
from aiohttp import web
from modelfleet_api.protocol import HEADER_KEY
from prometheus_client import CONTENT_TYPE_LATEST

from modelfleet_gateway.app import PublicApp
from modelfleet_gateway.demand import MAX_POLL_SECONDS, report_demand, report_endpoints
from modelfleet_gateway.dispatcher import Dispatcher
from modelfleet_gateway.errors import GatewayError
from modelfleet_gateway.internal_key import InternalKey
from modelfleet_gateway.metrics import Metrics
from modelfleet_gateway.notifier import Notifier


class InternalApp:
    """`handle` answers one request of the internal listener."""

    def __init__(self, *, dispatcher: Dispatcher, public: PublicApp, key: InternalKey, metrics: Metrics) -> None:
        self._dispatcher = dispatcher
        self._public = public
        self._key = key
        self._metrics = metrics

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Routes; refusals have OpenAI's shape here too."""
        try:
            return await self._route(request)
        except GatewayError as error:
            headers = {"Content-Type": "application/json", **error.response_headers()}
            return web.Response(status=error.status, body=error.body, headers=headers)

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if request.method != "GET":
            raise GatewayError(405, "Only GET.", "method_not_allowed", headers={"Allow": "GET"})
        if path in ("/health", "/ready"):
            return self._public.health(request)
        if path == "/metrics":
            return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})
        if not path.startswith("/internal/"):
            raise GatewayError(404, f"There is no {path[:256]} here.", "not_found")
        self._key.refresh()
        if not self._key.admits(request.headers.get(HEADER_KEY)):
            raise GatewayError(401, f"The header {HEADER_KEY} is missing or wrong.", "invalid_api_key")
        if path == "/internal/demand":
            await _wait(request, self._dispatcher.demand)
            return _json(report_demand(self._dispatcher).model_dump_json(by_alias=True))
        if path == "/internal/endpoints":
            await _wait(request, self._dispatcher.endpoints)
            return _json(report_endpoints(self._dispatcher).model_dump_json(by_alias=True))
        if path == "/internal/state":
            return _json(orjson.dumps({"inFlight": self._public.in_flight, "held": self._dispatcher.waiting}).decode())
        raise GatewayError(404, f"There is no {path[:256]} here.", "not_found")


async def _wait(request: web.BaseRequest, notifier: Notifier) -> None:
    """As the poll asks; without `after` at once."""
    after = request.query.get("after")
    if after is None:
        return
    try:
        version, seconds = int(after), float(request.query.get("timeout", MAX_POLL_SECONDS))
    except ValueError:
        version, seconds = 0, math.nan
    if not 0 <= seconds <= MAX_POLL_SECONDS:
        message = f"`after` must be a version and `timeout` a number of seconds from 0 to {MAX_POLL_SECONDS:g}."
        raise GatewayError(400, message, "invalid_query")
    await notifier.wait_beyond(version, timeout_seconds=seconds)


def _json(text: str) -> web.Response:
    return web.Response(body=text.encode(), content_type="application/json")
