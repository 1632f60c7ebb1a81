"""Asks every engine how it is: `/load` every two seconds or so, and what it has cached as it changes.

One task an engine, a bounded number of questions at a time. An engine without `/load` is a foreign one: its `/health`
says whether it is ready, and nobody knows its load but what was sent to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass

import aiohttp
from modelfleet_api.protocol import HEADER_KEY, KvEvent, Load
from pydantic import ValidationError

from modelfleet_gateway.dispatcher import Dispatcher
from modelfleet_gateway.errors import ConfigError
from modelfleet_gateway.fleet import Endpoint
from modelfleet_gateway.internal_key import InternalKey
from modelfleet_gateway.logs import log_event, log_failure
from modelfleet_gateway.pool import ModelPool
from modelfleet_gateway.upstream import Upstream

MAX_PROBES_AT_ONCE = 64
TIMEOUT_SECONDS = 2.0
# One that is not ready yet is asked more often: it is waited for.
UNREADY_SECONDS = 0.25
# Periods differ by up to this part of them, so that probes of many engines do not come together.
JITTER = 0.2
_NOT_THERE = (aiohttp.ClientConnectorError, ConnectionRefusedError)


@dataclass(slots=True)
class _Watch:
    """The tasks of one engine."""

    endpoint: Endpoint
    load: asyncio.Task[None]
    kv: asyncio.Task[None] | None = None


class Probes:
    """Keeps one watch for each engine of the fleet."""

    def __init__(
        self,
        *,
        dispatcher: Dispatcher,
        upstream: Upstream,
        key: InternalKey,
        period_seconds: float,
        draws: random.Random,
    ) -> None:
        self._dispatcher = dispatcher
        self._upstream = upstream
        self._key = key
        self._period_seconds = period_seconds
        self._draws = draws
        self._room = asyncio.Semaphore(MAX_PROBES_AT_ONCE)
        self._watches: dict[str, _Watch] = {}

    def update(self, endpoints: Iterable[Endpoint]) -> None:
        """The engines that exist now."""
        known = {endpoint.uid: endpoint for endpoint in endpoints}
        for uid, watch in list(self._watches.items()):
            if uid not in known or known[uid].base_url != watch.endpoint.base_url:
                self._stop(self._watches.pop(uid))
        for uid, endpoint in known.items():
            if uid not in self._watches:
                task = asyncio.get_running_loop().create_task(self._watch_load(endpoint), name=f"probe-{uid}")
                self._watches[uid] = _Watch(endpoint, task)

    def close(self) -> None:
        """Stops all watches."""
        for watch in self._watches.values():
            self._stop(watch)
        self._watches.clear()

    @staticmethod
    def _stop(watch: _Watch) -> None:
        watch.load.cancel()
        if watch.kv is not None:
            watch.kv.cancel()

    def _pool(self, endpoint: Endpoint) -> ModelPool | None:
        pool = self._dispatcher.pools.get(endpoint.model)
        return pool if pool is not None and endpoint.uid in pool.states else None

    async def _watch_load(self, endpoint: Endpoint) -> None:
        while (pool := self._pool(endpoint)) is not None:
            was_ready = pool.states[endpoint.uid].is_ready
            try:
                async with self._room:
                    await self._probe(endpoint, pool)
            except Exception as error:
                # A bug of ours must not end the watch: the engine would be lost without anybody knowing.
                log_failure("probe_failed", error, endpoint=endpoint.uid)
            state = pool.states.get(endpoint.uid)
            is_ready = state is not None and state.is_ready
            if is_ready != was_ready:
                log_event("endpoint", endpoint=endpoint.uid, model=endpoint.model.canonical, ready=is_ready)
                self._dispatcher.endpoints.bump()
            if pool.queue:
                self._dispatcher.pump(pool)
            self._follow_kv(endpoint, is_ready=is_ready)
            period = self._period_seconds if is_ready else min(UNREADY_SECONDS, self._period_seconds)
            await asyncio.sleep(period * (1 + JITTER * (2 * self._draws.random() - 1)))

    async def _probe(self, endpoint: Endpoint, pool: ModelPool) -> None:
        try:
            status, body = await self._ask(endpoint, "/load")
            if status == 404:
                status, _ = await self._ask(endpoint, "/health")
                pool.observe_ready(endpoint.uid, is_ready=status == 200, now=time.monotonic(), is_foreign=True)
            elif status == 200:
                pool.observe_load(endpoint.uid, Load.model_validate_json(body), time.monotonic())
            else:
                pool.observe_silence(endpoint.uid, is_gone=True)
        except (aiohttp.ClientError, OSError, TimeoutError, ValidationError) as error:
            pool.observe_silence(endpoint.uid, is_gone=isinstance(error, _NOT_THERE))

    async def _ask(self, endpoint: Endpoint, path: str) -> tuple[int, bytes]:
        answer = await self._upstream.get(
            endpoint.base_url, path, headers=self._headers(), timeout_seconds=TIMEOUT_SECONDS
        )
        return answer.status, answer.body

    def _headers(self) -> dict[str, str]:
        try:
            self._key.refresh()
        except ConfigError as error:
            log_event("internal_key_unreadable", error=str(error))
        return {} if self._key.shown is None else {HEADER_KEY: self._key.shown}

    def _follow_kv(self, endpoint: Endpoint, *, is_ready: bool) -> None:
        """While an engine is ready its KV events are read; the stream ends with the engine and is begun anew."""
        watch = self._watches.get(endpoint.uid)
        if watch is None or watch.endpoint is not endpoint:
            return
        if is_ready and (watch.kv is None or watch.kv.done()):
            task = asyncio.get_running_loop().create_task(self._read_kv(endpoint), name=f"kv-{endpoint.uid}")
            watch.kv = task
        elif not is_ready and watch.kv is not None:
            watch.kv.cancel()

    async def _read_kv(self, endpoint: Endpoint) -> None:
        """Events until the stream ends, breaks, or misses one. A foreign engine has none: it is left alone for good."""
        expected: int | None = None
        lines = self._upstream.lines(endpoint.base_url, "/kv-events", headers=self._headers())
        try:
            async with contextlib.aclosing(lines):
                async for line in lines:
                    if line is None:
                        # There are no events here and never will be: stay, so that nobody asks again.
                        await asyncio.Event().wait()
                    elif line.startswith(b"data:"):
                        event = KvEvent.model_validate_json(line.removeprefix(b"data:"))
                        if not event.snapshot and event.sequence != expected:
                            return
                        expected = event.sequence + 1
                        self._take_kv(endpoint, event)
        except (aiohttp.ClientError, OSError, TimeoutError, ValidationError):
            return

    def _take_kv(self, endpoint: Endpoint, event: KvEvent) -> None:
        pool = self._pool(endpoint)
        if pool is not None:
            pool.observe_kv(endpoint.uid, event)
