"""The fleet as watches of a cluster tell it: models, engine pods and routes of all namespaces, as one snapshot.

Must not decide anything, and must never write. While the API server is away the last snapshot stays.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from modelfleet_api import names
from modelfleet_kube.cache import Change, ChangeType
from modelfleet_kube.client import Client
from modelfleet_kube.connection import Connection, ConnectionConfigError, load_connection
from modelfleet_kube.errors import KubeError, NotFoundError
from modelfleet_kube.reflector import Reflector, ReflectorHooks
from modelfleet_kube.resources import POD, ResourceKind, Selection

from modelfleet_gateway.config import GatewayConfig
from modelfleet_gateway.errors import ConfigError
from modelfleet_gateway.fleet_source import Snapshot, build_snapshot
from modelfleet_gateway.kube_fleet import FleetBook, Key, Manifest
from modelfleet_gateway.logs import log_event, log_failure

LLM_DEPLOYMENT = ResourceKind(group=names.GROUP, version=names.VERSION, plural=names.PLURAL, kind=names.KIND)
MODEL_ROUTE = ResourceKind(group=names.GROUP, version=names.VERSION, plural=names.ROUTE_PLURAL, kind=names.ROUTE_KIND)
ENGINE_PODS = Selection(kind=POD, label_selector=f"{names.LABEL_MODEL},{names.LABEL_ROLE}={names.ROLE_ENGINE}")
# A rollout of many pods comes as a burst of events; everybody compares whole snapshots, so it becomes few of them.
GATHER_SECONDS = 0.02


class KubernetesSource:
    """A `FleetSource`. Its first snapshot with a fleet is complete: `wait_synced` returns once it is there."""

    def __init__(self, connection: Connection, *, config: GatewayConfig) -> None:
        self._connection = connection
        self._book = FleetBook()
        self._current = build_snapshot(config)
        self._callbacks: list[Callable[[Snapshot], None]] = []
        self._synced = asyncio.Event()
        # Set by their first list, or by the word that this cluster's CRDs are from before there were routes.
        self._routes_answered = asyncio.Event()
        self._publication: asyncio.TimerHandle | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def current(self) -> Snapshot:
        """The newest snapshot; without a fleet until the first lists are there."""
        return self._current

    @property
    def is_synced(self) -> bool:
        """Whether the whole cluster has been seen once. Before that, an unknown model may well exist."""
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        """Returns once `is_synced`."""
        await self._synced.wait()

    def subscribe(self, callback: Callable[[Snapshot], None]) -> None:
        """Calls back with each later snapshot, on the event loop."""
        self._callbacks.append(callback)

    @asynccontextmanager
    async def started(self, *, on_failure: Callable[[], object]) -> AsyncIterator[None]:
        """Watches for as long as the block runs, which begins once the whole fleet is known.

        `on_failure` is called where the watching ends by itself, which is a bug: the fleet would grow old unseen.
        """

        def on_end(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                log_failure("watch_ended", error)
                on_failure()

        self._watching = asyncio.create_task(self._watch(), name="watch-cluster")
        self._watching.add_done_callback(on_end)
        first = asyncio.create_task(self.wait_synced(), name="first-fleet")
        try:
            await asyncio.wait({self._watching, first}, return_when=asyncio.FIRST_COMPLETED)
            yield
        finally:
            for task in (first, self._watching):
                task.cancel()
            await asyncio.gather(first, self._watching, return_exceptions=True)

    async def run(self) -> None:
        """Watches until cancelled; in a block of `started` it waits with it."""
        if self._watching is None:
            await self._watch()
        else:
            await asyncio.shield(self._watching)

    async def _watch(self) -> None:
        """Lists and watches; failures are logged and retried by the reflectors."""
        try:
            async with Client(self._connection) as client, asyncio.TaskGroup() as group:
                models = self._reflector(client, Selection(kind=LLM_DEPLOYMENT), take=self._book.take_model)
                pods = self._reflector(client, ENGINE_PODS, take=self._book.take_pod)
                routes = self._reflector(client, Selection(kind=MODEL_ROUTE), take=self._book.take_route)
                for reflector in (models, pods, routes):
                    group.create_task(reflector.run(), name=f"watch-{reflector.selection.kind.plural}")
                group.create_task(self._answer_when_synced(routes), name="first-routes")
                await models.synced.wait()
                await pods.synced.wait()
                await self._routes_answered.wait()
                self._synced.set()
                self._publish()
                fleet = self._current.fleet
                log_event("fleet_synced", models=len(fleet.models), endpoints=len(fleet.endpoints))
        finally:
            if self._publication is not None:
                self._publication.cancel()

    def _reflector(
        self, client: Client, selection: Selection, *, take: Callable[[Key, Manifest | None], bool]
    ) -> Reflector:
        def on_change(change: Change) -> None:
            gone = change.type is ChangeType.DELETED
            if take(change.key, None if gone else change.object):
                self._publish_soon()

        hooks = ReflectorHooks(on_change=on_change, on_error=self._on_error, random_unit=random.random)
        return Reflector(client, selection, hooks=hooks)

    async def _answer_when_synced(self, routes: Reflector) -> None:
        await routes.synced.wait()
        self._routes_answered.set()

    def _on_error(self, selection: Selection, error: KubeError) -> None:
        if selection.kind == MODEL_ROUTE and isinstance(error, NotFoundError):
            if self._routes_answered.is_set():
                return
            self._routes_answered.set()
        log_event("watch_failed", resource=selection.kind.plural, error=str(error))

    def _publish_soon(self) -> None:
        # Half a fleet would refuse or hold requests that the other half serves.
        if self.is_synced and self._publication is None:
            self._publication = asyncio.get_running_loop().call_later(GATHER_SECONDS, self._publish)

    def _publish(self) -> None:
        self._publication = None
        self._current = replace(self._current, fleet=self._book.fleet())
        for callback in self._callbacks:
            callback(self._current)


def kubernetes_source(config: GatewayConfig) -> KubernetesSource:
    """The cluster we run in, or that of `KUBECONFIG`; tenants are the configuration's.

    Raises:
        ConfigError: there is neither.
    """
    try:
        connection = load_connection()
    except ConnectionConfigError as error:
        raise ConfigError(f"no --config, and no cluster to watch: {error}") from error
    return KubernetesSource(connection, config=config)
