"""The public listener: routes, and what every request goes through on its way in and out."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import orjson
from aiohttp import web
from modelfleet_api.protocol import HEADER_REQUEST_ID

from modelfleet_gateway import refusals
from modelfleet_gateway.access_log import AccessLog, AccessRecord
from modelfleet_gateway.admission import PASSED_PATHS, Admission
from modelfleet_gateway.call import Call
from modelfleet_gateway.config import BoundsConfig, TimeoutsConfig
from modelfleet_gateway.dispatcher import Dispatcher
from modelfleet_gateway.errors import STATUS_CLIENT_CLOSED, GatewayError
from modelfleet_gateway.exchange import Exchange, read_body
from modelfleet_gateway.gateway_statistics import GatewayStatistics
from modelfleet_gateway.keys import Tenant
from modelfleet_gateway.logs import log_failure
from modelfleet_gateway.proxy import Proxy
from modelfleet_gateway.resolve import listed_models

_SAFE_ID = re.compile(r"[\x21-\x7e]{1,128}")
_MAX_LOGGED_PATH = 256


@dataclass(slots=True)
class Ending:
    """How far the end of the process has come."""

    is_draining: bool = False
    is_refusing: bool = False
    is_cutting: bool = False


class PublicApp:
    """`handle` answers one request of the public listener."""

    def __init__(  # noqa: PLR0913  the parts it is wired from
        self,
        *,
        dispatcher: Dispatcher,
        admission: Admission,
        proxy: Proxy,
        statistics: GatewayStatistics,
        access_log: AccessLog,
        bounds: BoundsConfig,
        timeouts: TimeoutsConfig,
    ) -> None:
        self._dispatcher = dispatcher
        self._admission = admission
        self._proxy = proxy
        self._statistics = statistics
        self._access_log = access_log
        self._bounds = bounds
        self._timeouts = timeouts
        self.ending = Ending()
        self._active: set[asyncio.Task[object]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_flight(self) -> int:
        """Requests that are being served."""
        return len(self._active)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Routes, logs and counts; every error becomes an answer."""
        if request.path in ("/health", "/ready"):
            return self.health(request)
        given = request.headers.get(HEADER_REQUEST_ID, "")
        record = AccessRecord(
            request_id=given if _SAFE_ID.fullmatch(given) else uuid.uuid4().hex,
            method=request.method,
            path=request.path[:_MAX_LOGGED_PATH],
            arrived_seconds=time.monotonic(),
        )
        exchange = Exchange(request, request_id=record.request_id)
        exchange.closes = self.ending.is_draining
        is_gone = True
        with self._counted():
            try:
                response = await self._answer(request, exchange, record)
                is_gone = False
                return response
            finally:
                status = STATUS_CLIENT_CLOSED if is_gone else exchange.status
                now = time.monotonic()
                self._access_log.write(record, status=status, now=now)
                self._statistics.count_request(model=record.model or "", tenant=record.tenant or "", status=status)

    def health(self, request: web.BaseRequest) -> web.Response:
        """`/health`: the process lives. `/ready`: it wants requests."""
        is_ok = request.path == "/health" or not self.ending.is_draining
        body = orjson.dumps({"status": "ok" if is_ok else "draining"})
        return web.Response(status=200 if is_ok else 503, body=body, content_type="application/json")

    async def wait_idle(self, *, timeout_seconds: float) -> bool:
        """Waits until nothing is in flight; False if that took too long."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def cut_all(self) -> None:
        """The time for what runs is over: each client is told so."""
        self.ending.is_cutting = True
        for task in self._active:
            task.cancel()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None, "a request is served by a task"
        self._active.add(task)
        self._idle.clear()
        try:
            yield
        finally:
            self._active.discard(task)
            if not self._active:
                self._idle.set()

    async def _answer(self, request: web.BaseRequest, exchange: Exchange, record: AccessRecord) -> web.StreamResponse:
        """The route's answer, or the error that says why there is none."""
        try:
            return await self._route(request, exchange, record)
        except GatewayError as error:
            refusal = error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            is_client_gone = request.transport is None or request.transport.is_closing()
            if not self.ending.is_cutting or is_client_gone or task is None:
                raise
            task.uncancel()
            refusal = refusals.gateway_ending()
        except ConnectionResetError:
            raise
        except Exception as error:
            log_failure("request_failed", error, request_id=record.request_id)
            refusal = GatewayError(500, "Internal server error.", "internal_error")
        record.error_code = refusal.code
        return await exchange.refuse(refusal)

    async def _route(self, request: web.BaseRequest, exchange: Exchange, record: AccessRecord) -> web.StreamResponse:
        if self.ending.is_refusing:
            raise refusals.gateway_ending()
        path = request.path
        if path in PASSED_PATHS:
            _check_method(request, "POST")
        elif path == "/v1/models" or path.startswith("/v1/models/"):
            _check_method(request, "GET")
        else:
            raise GatewayError(404, f"There is no {path[:_MAX_LOGGED_PATH]} here.", "not_found")
        tenant = self._admission.identify(request.headers)
        record.tenant = tenant.name
        if path not in PASSED_PATHS:
            return await self._models(path.removeprefix("/v1/models").removeprefix("/"), tenant, exchange)
        raw = await read_body(request, limit_bytes=self._bounds.body_bytes, timeout_seconds=self._timeouts.body_seconds)
        call = self._admission.admit(raw, request.headers, tenant=tenant, record=record)
        del raw
        return await self._generate(call, exchange)

    async def _generate(self, call: Call, exchange: Exchange) -> web.StreamResponse:
        try:
            exchange.headers.update(call.tenant.quota.headers(call.record.arrived_seconds))
            return await self._proxy.serve(call, exchange)
        finally:
            self._admission.settle(call)

    async def _models(self, name: str, tenant: Tenant, exchange: Exchange) -> web.StreamResponse:
        """The list, or one entry of it; only what the tenant may use."""
        cards = [
            {"id": listed.name, "object": "model", "created": int(listed.created_at), "owned_by": "modelfleet"}
            for listed in listed_models(self._dispatcher.fleet)
            if all(tenant.may_use(model.canonical) for model in listed.models)
        ]
        if not name:
            body = orjson.dumps({"object": "list", "data": cards})
        elif (card := next((card for card in cards if card["id"] == name), None)) is not None:
            body = orjson.dumps(card)
        else:
            raise GatewayError(404, f"The model {name[:200]!r} does not exist.", "model_not_found", param="model")
        return await exchange.answer(200, body, {"Content-Type": "application/json"})


def _check_method(request: web.BaseRequest, allowed: str) -> None:
    if request.method != allowed:
        message = f"{request.path[:_MAX_LOGGED_PATH]} takes {allowed}, not {request.method[:32]}."
        raise GatewayError(405, message, "method_not_allowed", headers={"Allow": allowed})
