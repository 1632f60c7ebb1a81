"""From a configuration to a serving gateway and its orderly end."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable, Coroutine
from typing import Any

from modelfleet_gateway.access_log import AccessLog
from modelfleet_gateway.admission import Admission
from modelfleet_gateway.app import PublicApp
from modelfleet_gateway.config import GatewayConfig
from modelfleet_gateway.dispatcher import Dispatcher
from modelfleet_gateway.fleet_source import FleetSource, Snapshot
from modelfleet_gateway.gateway_statistics import GatewayStatistics
from modelfleet_gateway.internal_app import InternalApp
from modelfleet_gateway.internal_key import InternalKey
from modelfleet_gateway.keys import Tenants
from modelfleet_gateway.listener import Listener
from modelfleet_gateway.logs import log_event
from modelfleet_gateway.metrics import Metrics
from modelfleet_gateway.probe import Probes
from modelfleet_gateway.proxy import Proxy
from modelfleet_gateway.quota_state import QuotaState
from modelfleet_gateway.upstream import Upstream

# How long clients of cut requests may take to be told.
FLUSH_SECONDS = 2.0


class Gateway:
    """All parts of one gateway, wired. `start`, then `drain`, then `close`; inside one running loop."""

    def __init__(self, config: GatewayConfig, source: FleetSource) -> None:
        self._config = config
        self._source = source
        draws = random.Random()
        statistics = GatewayStatistics()
        self.key = InternalKey(config.internal.key_file)
        self.dispatcher = Dispatcher(statistics=statistics, draws=draws)
        self.tenants = Tenants()
        self._quota_state = QuotaState(config.state_file, self.tenants)
        self._access_log = AccessLog()
        self._upstream = Upstream(config.timeouts)
        self._probes = Probes(
            dispatcher=self.dispatcher,
            upstream=self._upstream,
            key=self.key,
            period_seconds=config.probe_seconds,
            draws=draws,
        )
        self.public = PublicApp(
            dispatcher=self.dispatcher,
            admission=Admission(
                dispatcher=self.dispatcher,
                tenants=self.tenants,
                total_seconds=config.timeouts.total_seconds,
                draws=draws,
            ),
            proxy=Proxy(
                dispatcher=self.dispatcher,
                upstream=self._upstream,
                key=self.key,
                heartbeat_seconds=config.heartbeat_seconds,
            ),
            statistics=statistics,
            access_log=self._access_log,
            bounds=config.bounds,
            timeouts=config.timeouts,
        )
        internal = InternalApp(
            dispatcher=self.dispatcher,
            public=self.public,
            key=self.key,
            metrics=Metrics(dispatcher=self.dispatcher, statistics=statistics),
        )
        self._listeners = (
            Listener(self.public.handle, bounds=config.bounds, timeouts=config.timeouts),
            Listener(internal.handle, bounds=config.bounds, timeouts=config.timeouts),
        )
        self.port = 0
        self.internal_port = 0
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def connections(self) -> int:
        """Open ones of clients."""
        return self._listeners[0].connections

    async def start(self) -> None:
        """Takes the first snapshot, begins to probe and listens. Raises ConfigError or OSError."""
        self.key.refresh()
        self._take(self._source.current)
        self._quota_state.load()
        self._spawn(self._quota_state.run())
        self._source.subscribe(self._take)
        self._spawn(self._source.run())
        public, internal = self._listeners
        self.port = await public.start(self._config.listen)
        self.internal_port = await internal.start(self._config.internal.listen)
        log_event("listening", port=self.port, internal_port=self.internal_port)

    async def drain(self) -> bool:
        """Ends in order; True if nothing had to be cut.

        First not ready but accepting, while load balancers notice; then refusing, while what runs is finished; then
        each client that is left is told.
        """
        ending = self.public.ending
        ending.is_draining = True
        log_event("draining", in_flight=self.public.in_flight, held=self.dispatcher.waiting)
        await asyncio.sleep(self._config.drain.accept_seconds)
        ending.is_refusing = True
        self.dispatcher.refuse_hopeless()
        is_clean = await self.public.wait_idle(timeout_seconds=self._config.drain.timeout_seconds)
        if not is_clean:
            self.dispatcher.refuse_waiting()
            self.public.cut_all()
            await self.public.wait_idle(timeout_seconds=FLUSH_SECONDS)
        log_event("drained", clean=is_clean)
        return is_clean

    async def close(self) -> None:
        """Frees everything."""
        self._probes.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for listener in self._listeners:
            await listener.close()
        await self._upstream.close()
        self._quota_state.save()
        self._access_log.flush()

    def _take(self, snapshot: Snapshot) -> None:
        """The world has changed."""
        self.tenants.update(snapshot)
        self.dispatcher.set_weights(self.tenants.weights)
        self.dispatcher.update(snapshot.fleet)
        self._probes.update(snapshot.fleet.endpoints.values())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work))


async def serve(gateway: Gateway, *, on_hangup: Callable[[], object]) -> int:
    """Serves until SIGTERM or SIGINT and a finished drain; the exit code. A second signal changes nothing."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    try:
        await gateway.start()
        await ended.wait()
        await gateway.drain()
    finally:
        await gateway.close()
    return 0
