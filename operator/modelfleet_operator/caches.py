"""What the operator knows of the cluster: one cache per kind, and which LLMDeployment each change concerns.

The LLMDeployments come from kopf's watch and our own periodic list; everything else from reflectors that the API
server filters by the model label. Must not decide anything: a change only marks a key dirty.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from modelfleet_api import names
from modelfleet_kube.cache import Change, by_label
from modelfleet_kube.client import Client, WatchEvent
from modelfleet_kube.errors import KubeError
from modelfleet_kube.reflector import Reflector, ReflectorHooks
from modelfleet_kube.resources import (
    CONFIG_MAP,
    CONTROLLER_REVISION,
    DEPLOYMENT,
    EVENT,
    POD,
    POD_DISRUPTION_BUDGET,
    SERVICE,
    SERVICE_ACCOUNT,
    ObjectKey,
    ResourceKind,
    Selection,
    key_of,
)

from modelfleet_operator.metrics import Metrics

logger = logging.getLogger(__name__)

LLM_DEPLOYMENT = ResourceKind(group=names.GROUP, version=names.VERSION, plural=names.PLURAL, kind=names.KIND)
CHILD_KINDS = (
    SERVICE_ACCOUNT,
    CONFIG_MAP,
    CONTROLLER_REVISION,
    DEPLOYMENT,
    SERVICE,
    POD_DISRUPTION_BUDGET,
)
# What a pod's own status does not tell: why its volumes are not there. The kubelet's word on a volume that cannot be
# attached comes minutes after the controller's.
VOLUME_EVENT_REASONS = ("FailedMount", "FailedAttachVolume")

OnDirty = Callable[[ObjectKey], None]


def _involved_pod(event: dict[str, Any]) -> str | None:
    name: str | None = (event.get("involvedObject") or {}).get("name")
    return name


class Caches:
    """Created before kopf starts; `run` fills them until cancelled. `on_dirty` must not block."""

    def __init__(
        self, client: Client, *, on_dirty: OnDirty, metrics: Metrics, random_unit: Callable[[], float]
    ) -> None:
        self._on_dirty = on_dirty
        self._metrics = metrics
        self._client = client
        self._random_unit = random_unit
        self.models = self._reflector(Selection(kind=LLM_DEPLOYMENT), tells=self._tell_model)
        self.volume_events = tuple(self._volume_events(reason) for reason in VOLUME_EVENT_REASONS)
        self.children = {
            kind: self._reflector(Selection(kind=kind, label_selector=names.LABEL_MODEL), tells=self._tell_child)
            for kind in (*CHILD_KINDS, POD)
        }
        for reflector in self._all():
            metrics.observe_cache(reflector.selection.kind.plural, size=reflector.cache.__len__)

    async def run(self) -> None:
        """Keeps every cache but the LLMDeployments' current, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for reflector in self._all():
                if reflector is not self.models:
                    group.create_task(reflector.run(), name=f"reflector-{reflector.selection.kind.plural}")

    async def resync(self) -> None:
        """One list of the LLMDeployments: differences that kopf's watch missed mark their keys dirty."""
        await self.models.relist()

    def take_model_event(self, event_type: str | None, manifest: dict[str, Any]) -> None:
        """An event of kopf's watch; it gives None as the type of objects it has listed."""
        self.models.take(WatchEvent(type=event_type or "ADDED", object=manifest))

    def has_children(self, key: ObjectKey) -> bool:
        """Whether anything has been created for this LLMDeployment."""
        return bool(self.children[DEPLOYMENT].cache.indexed(key))

    def put(self, kind: ResourceKind, manifest: dict[str, Any]) -> None:
        """The answer to our own write of an LLMDeployment or of a child."""
        reflector = self.models if kind == LLM_DEPLOYMENT else self.children.get(kind)
        if reflector is not None:
            reflector.put(manifest)

    def unsynced(self) -> list[str]:
        """The kinds whose first list is not there yet."""
        return [each.selection.kind.plural for each in self._all() if not each.synced.is_set()]

    async def wait_synced(self) -> None:
        """Returns once every cache has been filled."""
        for reflector in self._all():
            await reflector.synced.wait()

    def _all(self) -> list[Reflector]:
        return [self.models, *self.children.values(), *self.volume_events]

    def _reflector(self, selection: Selection, *, tells: Callable[[Change], None]) -> Reflector:
        index_by = None if selection.kind == LLM_DEPLOYMENT else by_label(names.LABEL_MODEL)
        return Reflector(self._client, selection, hooks=self._hooks(tells), index_by=index_by)

    def _volume_events(self, reason: str) -> Reflector:
        selection = Selection(kind=EVENT, field_selector=f"reason={reason},involvedObject.kind=Pod")
        return Reflector(self._client, selection, hooks=self._hooks(self._tell_mount_event), index_by=_involved_pod)

    def _hooks(self, tells: Callable[[Change], None]) -> ReflectorHooks:
        return ReflectorHooks(on_change=tells, on_error=self._on_error, random_unit=self._random_unit)

    def _on_error(self, selection: Selection, error: KubeError) -> None:
        self._metrics.watch_errors.labels(resource=selection.kind.plural).inc()
        logger.warning("cannot watch %s, retrying: %s", selection.kind.plural, error)

    def _tell_model(self, change: Change) -> None:
        self._on_dirty(change.key)

    def _tell_child(self, change: Change) -> None:
        # A child whose label was changed by hand concerns both: the one it left must repair it.
        values = {by_label(names.LABEL_MODEL)(item) for item in (change.object, change.before) if item is not None}
        for value in values - {None}:
            self._on_dirty(ObjectKey(change.key.namespace, str(value)))

    def _tell_mount_event(self, change: Change) -> None:
        pod_name = _involved_pod(change.object)
        pod = self.children[POD].cache.get(ObjectKey(change.key.namespace, pod_name)) if pod_name else None
        if pod is not None:
            self._on_dirty(ObjectKey(key_of(pod).namespace, pod["metadata"]["labels"][names.LABEL_MODEL]))
