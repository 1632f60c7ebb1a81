"""What the operator sees and what it decides: frozen types between the reader, the pure core and the writer.

PURE: no clock, no I/O. Manifests stay plain dicts as the API server gives them, with apiVersion and kind filled in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from modelfleet_api import names

Manifest = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSettings:
    """The part of the operator's configuration that decisions depend on."""

    engine_image: str
    engine_gpu_image: str | None = None
    engine_pull_policy: str = "IfNotPresent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One LLMDeployment as stored; `spec` is not parsed, since an old object may break a newer rule."""

    name: str
    namespace: str
    uid: str
    generation: int
    spec: Manifest
    status: Manifest
    is_deleting: bool = False

    @staticmethod
    def from_manifest(raw: Manifest) -> Resource:
        """Reads the parts the core needs."""
        metadata = raw["metadata"]
        return Resource(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            generation=metadata.get("generation", 1),
            spec=raw.get("spec") or {},
            status=raw.get("status") or {},
            is_deleting="deletionTimestamp" in metadata,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminated:
    """How a container ended."""

    reason: str
    exit_code: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerView:
    """One container's status; `terminated` is the present end, `last_terminated` the one before the restart."""

    name: str
    is_ready: bool = False
    is_running: bool = False
    restart_count: int = 0
    waiting_reason: str | None = None
    waiting_message: str = ""
    terminated: Terminated | None = None
    last_terminated: Terminated | None = None

    @staticmethod
    def from_manifest(raw: Manifest) -> ContainerView:
        """Reads one entry of containerStatuses."""
        state = raw.get("state") or {}
        waiting = state.get("waiting") or {}
        return ContainerView(
            name=raw["name"],
            is_ready=bool(raw.get("ready")),
            is_running="running" in state,
            restart_count=raw.get("restartCount", 0),
            waiting_reason=waiting.get("reason"),
            waiting_message=waiting.get("message", ""),
            terminated=_terminated(state.get("terminated")),
            last_terminated=_terminated((raw.get("lastState") or {}).get("terminated")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PodView:
    """One pod, as far as decisions need it."""

    name: str
    uid: str
    revision_hash: str
    phase: str
    created: str
    is_terminating: bool
    reason: str = ""
    message: str = ""
    node_name: str | None = None
    unschedulable_message: str | None = None
    is_scheduled: bool = False
    has_containers_ready: bool = False
    # The readiness gate `modelfleet.dev/routable`: None where it was never set.
    is_routable: bool | None = None
    is_ready: bool = False
    # When the gate last changed (RFC 3339), by the operator's own clock; empty where it was never set.
    gate_changed: str = ""
    # Since when the pod is not ready (RFC 3339); its creation where the kubelet has not spoken yet.
    unready_since: str = ""
    # Its volumes are mounted and its sandbox runs (the kubelet's PodReadyToStartContainers).
    has_sandbox: bool = False
    init_containers: tuple[ContainerView, ...] = ()
    containers: tuple[ContainerView, ...] = ()

    @property
    def has_ended(self) -> bool:
        """It will never run again: evicted, or otherwise over."""
        return self.phase in ("Failed", "Succeeded")

    @staticmethod
    def from_manifest(raw: Manifest) -> PodView:
        """Reads a pod; a pod without our revision label gets an empty revision hash."""
        metadata, status = raw["metadata"], raw.get("status") or {}
        conditions = {item["type"]: item for item in status.get("conditions") or []}
        scheduled = conditions.get("PodScheduled", {})
        gate = conditions.get(names.READINESS_GATE_ROUTABLE)
        ready = conditions.get("Ready", {})
        created = metadata.get("creationTimestamp", "")
        return PodView(
            name=metadata["name"],
            uid=metadata["uid"],
            revision_hash=(metadata.get("labels") or {}).get(names.LABEL_REVISION, ""),
            phase=status.get("phase", "Pending"),
            created=created,
            is_terminating="deletionTimestamp" in metadata,
            reason=status.get("reason", ""),
            message=status.get("message", ""),
            node_name=(raw.get("spec") or {}).get("nodeName"),
            unschedulable_message=_unschedulable(scheduled),
            is_scheduled=scheduled.get("status") == "True",
            has_containers_ready=conditions.get("ContainersReady", {}).get("status") == "True",
            is_routable=None if gate is None else gate.get("status") == "True",
            is_ready=ready.get("status") == "True",
            gate_changed=(gate or {}).get("lastTransitionTime") or "",
            unready_since=ready.get("lastTransitionTime") or created,
            has_sandbox=conditions.get("PodReadyToStartContainers", {}).get("status") == "True",
            init_containers=_containers(status.get("initContainerStatuses")),
            containers=_containers(status.get("containerStatuses")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MountFailure:
    """A FailedMount event of the kubelet: the pod is scheduled, but its volume is not there."""

    pod_name: str
    pod_uid: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyError:
    """Why one child could not be written in the pass before, for the same spec generation.

    409 with this meaning comes from the writer: before it creates a child that no cache knows it looks whether an
    object of that name exists without our label; then it must not be taken over.
    """

    kind: str
    name: str
    status_code: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One consistent look at one model's world; `children` are the labelled objects in the model's namespace."""

    resource: Resource
    children: tuple[Manifest, ...] = ()
    pods: tuple[PodView, ...] = ()
    mount_failures: tuple[MountFailure, ...] = ()
    apply_errors: tuple[ApplyError, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectReference:
    """An object to delete; the uid is a precondition, so that a new object of the same name survives."""

    api_version: str
    kind: str
    name: str
    namespace: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PodGate:
    """Set the readiness gate of one pod."""

    pod_name: str
    pod_uid: str
    is_routable: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """One Kubernetes Event about the LLMDeployment; `type` is Normal or Warning."""

    type: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do, in this order: `apply_first` one by one, `apply` in parallel, gates, deletes, status, events.

    `status` is a merge patch for the status subresource, None when nothing changed. An empty plan writes nothing.
    """

    apply_first: tuple[Manifest, ...] = ()
    apply: tuple[Manifest, ...] = ()
    delete: tuple[ObjectReference, ...] = ()
    gates: tuple[PodGate, ...] = ()
    status: Manifest | None = None
    events: tuple[EventRecord, ...] = field(default=())
    requeue_after_seconds: float | None = None

    @property
    def is_empty(self) -> bool:
        """Whether carrying it out writes nothing."""
        return not (self.apply_first or self.apply or self.delete or self.gates or self.status or self.events)


def rfc3339(moment: datetime) -> str:
    """The moment, aware and in UTC, as the API server writes times."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _terminated(raw: Manifest | None) -> Terminated | None:
    if raw is None:
        return None
    return Terminated(reason=raw.get("reason", ""), exit_code=raw.get("exitCode", 0), message=raw.get("message", ""))


def _containers(raw: list[Manifest] | None) -> tuple[ContainerView, ...]:
    return tuple(ContainerView.from_manifest(item) for item in raw or [])


def _unschedulable(scheduled: Manifest) -> str | None:
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        return str(scheduled.get("message", ""))
    return None
