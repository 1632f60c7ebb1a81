"""The parts of a running operator and the order in which they start and stop.

Probes, caches, then (all caches filled, and leading) workers; stopping is the reverse. A part that ends by itself
ends the process: Kubernetes restarts it. Must not know what a pass does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Coroutine
from datetime import UTC, datetime

from modelfleet_api import names
from modelfleet_kube.client import Client
from modelfleet_kube.connection import Connection
from modelfleet_kube.dirty_set import DirtySet, Priority
from modelfleet_kube.errors import KubeError
from modelfleet_kube.lease import LeaderElector, LeaseSettings
from modelfleet_kube.resources import ObjectKey, key_of
from modelfleet_kube.transport import Exchange

from modelfleet_operator.apply import Clocks
from modelfleet_operator.caches import Caches
from modelfleet_operator.http import HealthChecks, HttpServer
from modelfleet_operator.leader import Leadership
from modelfleet_operator.metrics import Metrics
from modelfleet_operator.reconcile import Reconciler
from modelfleet_operator.settings import Settings
from modelfleet_operator.workers import WorkerPool

logger = logging.getLogger(__name__)

LEASE_NAME = "modelfleet-operator"
# What kopf's watch may have missed (a deletion during a 410) is found after at most this long; ~20 ms per 1,000.
RESYNC_SECONDS = 60.0
# Every key is looked at again this often without a cause: a pass without writes costs about a millisecond.
FULL_PASS_SECONDS = 600.0
HEARTBEAT_SECONDS = 1.0
HEARTBEAT_LIMIT_SECONDS = 30.0
RETRY_SECONDS = 2.0


def _exit_now() -> None:
    # Nothing may be written after the lease is lost, so there is no orderly way out.
    logging.shutdown()
    os._exit(1)


class Runtime:
    """One per process. Created inside the event loop; `stop_flag` ends kopf, `exit_code` says why."""

    def __init__(self, settings: Settings, connection: Connection) -> None:
        self.settings = settings
        self.connection = connection
        self.stop_flag = asyncio.Event()
        self.exit_code = 0
        self.metrics = Metrics()
        self.client = Client(connection, on_request=self.metrics.record_request)
        self.dirty: DirtySet[ObjectKey] = DirtySet(clock=time.monotonic, random_unit=random.random)
        self.caches = Caches(self.client, on_dirty=self.mark_dirty, metrics=self.metrics, random_unit=random.random)
        clocks = Clocks(monotonic=time.monotonic, wall=lambda: datetime.now(UTC))
        self.reconciler = Reconciler(self.client, self.caches, settings=settings, metrics=self.metrics, clocks=clocks)
        self.workers = WorkerPool(self.dirty, self.reconciler.make_pass, metrics=self.metrics, clock=time.monotonic)
        self.leadership = Leadership(self._elector(), metrics=self.metrics, on_lost=_exit_now)
        self.http = HttpServer(
            checks=HealthChecks(alive=self.problem, ready=self.not_ready), registry=self.metrics.registry
        )
        self.http_port = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._heartbeat_at = time.monotonic()
        self._is_stopping = False
        self.metrics.observe_queue(
            ready=self.dirty.__len__,
            delayed=lambda: self.dirty.delayed_count,
            active=lambda: self.workers.active_count,
        )

    async def start(self) -> None:
        """Returns when the kind is served, so that kopf finds it; the rest goes on in the background."""
        self.http_port = await self.http.start(port=self.settings.http_port)
        logger.info("probes and metrics are served on port %d", self.http_port)
        self._spawn("heartbeat", self._beat())
        self._spawn("leadership", self.leadership.run())
        await self._wait_for_kind()
        self._spawn("caches", self.caches.run())
        self._spawn("resync", self._resync())
        self._spawn("workers", self._work())

    async def stop(self) -> None:
        """Workers and caches end first; only then is the lease given up."""
        self._is_stopping = True
        for task in reversed(self._tasks):
            task.cancel()
        # What a part ended with has been logged when it did.
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.leadership.release()
        await self.client.close()
        await self.http.close()
        # kopf leaves a task that waits for the flag, and would then wait 5 s for that task.
        self.stop_flag.set()

    def mark_dirty(self, key: ObjectKey) -> None:
        """Asks for a pass; those whose children exist already come first."""
        self.dirty.add(key, priority=Priority.STARTED if self.caches.has_children(key) else Priority.NEW)

    def problem(self) -> str | None:
        """What only a restart can cure. (A blocked event loop does not answer at all.)"""
        silence = time.monotonic() - self._heartbeat_at
        if silence > HEARTBEAT_LIMIT_SECONDS:
            return f"the event loop was blocked for {silence:.0f} s"
        return self.workers.stuck()

    def not_ready(self) -> str | None:
        """Why this replica could not act if it led."""
        missing = self.caches.unsynced()
        return f"not listed yet: {', '.join(missing)}" if missing else None

    def _elector(self) -> LeaderElector | None:
        if not self.settings.leader_election:
            return None
        lease = LeaseSettings(
            name=LEASE_NAME, namespace=self.settings.system_namespace, identity=self.settings.pod_name
        )
        return LeaderElector(self.client, lease, clock=time.monotonic, wall_clock=lambda: datetime.now(UTC))

    def _spawn(self, name: str, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._on_task_end)
        self._tasks.append(task)

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        if self._is_stopping or task.cancelled():
            return
        logger.error("the %s task ended, so this process does", task.get_name(), exc_info=task.exception())
        self.exit_code = 1
        self.stop_flag.set()

    async def _beat(self) -> None:
        while True:
            self._heartbeat_at = time.monotonic()
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def _wait_for_kind(self) -> None:
        """Until discovery names the kind: kopf looks once, at its start, and would never watch it."""
        exchange = Exchange(method="GET", path=f"/apis/{names.API_VERSION}", verb="get", resource="discovery")
        while True:
            try:
                found = await self.client.request(exchange)
                if any(item["name"] == names.PLURAL for item in found["resources"]):
                    return
                logger.warning("%s is not served yet", names.PLURAL)
            except KubeError as error:
                logger.warning("waiting for the API server to serve %s: %s", names.PLURAL, error)
            await asyncio.sleep(RETRY_SECONDS)

    async def _resync(self) -> None:
        passed_at = time.monotonic()
        while True:
            try:
                await self.caches.resync()
            except KubeError as error:
                logger.warning("cannot list %s, retrying: %s", names.PLURAL, error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if time.monotonic() - passed_at >= FULL_PASS_SECONDS:
                passed_at = time.monotonic()
                self._mark_all_dirty()
            await asyncio.sleep(RESYNC_SECONDS)

    async def _work(self) -> None:
        await self.caches.wait_synced()
        await self.leadership.gate.wait()
        # What changed while nobody led has been taken from the dirty set by nobody, but a new leader looks at all.
        self._mark_all_dirty()
        await self.workers.run(count=self.settings.workers)

    def _mark_all_dirty(self) -> None:
        for model in self.caches.models.cache:
            self.mark_dirty(key_of(model))
