"""Manifests as the API server gives them, small and with readable defaults, for tests of the pure core."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from modelfleet_api import names
from modelfleet_operator.state import Manifest, Observed, OperatorSettings, PodView, Resource

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SETTINGS = OperatorSettings(engine_image="modelfleet/engine-cpu:1", engine_gpu_image="modelfleet/engine-gpu:1")
SPEC: dict[str, Any] = {"model": {"source": "pvc://models/tiny"}}


def resource(spec: Manifest = SPEC, *, status: Manifest | None = None, generation: int = 1) -> Resource:
    """An LLMDeployment `chat` in namespace `team`."""
    return Resource(
        name="chat", namespace="team", uid="uid-chat", generation=generation, spec=spec, status=status or {}
    )


def observed(spec: Manifest = SPEC, **parts: Any) -> Observed:
    """An observed world; `status` and `generation` go to the resource."""
    status, generation = parts.pop("status", None), parts.pop("generation", 1)
    return Observed(resource=resource(spec, status=status, generation=generation), **parts)


def pod(
    name: str = "chat-1", *, revision: str = "rev", status: Manifest | None = None, deleting: bool = False
) -> Manifest:
    """A pod manifest with our labels and the given status."""
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": "team",
        "uid": f"uid-{name}",
        "creationTimestamp": "2026-01-02T03:00:00Z",
        "labels": {names.LABEL_MODEL: "chat", names.LABEL_REVISION: revision},
    }
    if deleting:
        metadata["deletionTimestamp"] = "2026-01-02T03:03:00Z"
    return {"metadata": metadata, "spec": {"nodeName": "node-1"}, "status": status or {"phase": "Pending"}}


def condition(kind: str, status: str, **more: str) -> dict[str, str]:
    """One pod condition."""
    return {"type": kind, "status": status, **more}


def running_status(*, containers_ready: bool = True, routable: bool | None = True) -> dict[str, Any]:
    """The status of a scheduled, started pod. Ready needs the containers and the gate."""
    conditions = [
        condition("PodScheduled", "True"),
        condition("ContainersReady", str(containers_ready)),
        condition("Ready", str(containers_ready and routable is True)),
    ]
    if routable is not None:
        conditions.append(condition(names.READINESS_GATE_ROUTABLE, str(routable)))
    engine = {"name": "engine", "ready": containers_ready, "restartCount": 0, "state": {"running": {}}}
    return {"phase": "Running", "conditions": conditions, "containerStatuses": [engine]}


def engine_status(**engine: Any) -> dict[str, Any]:
    """A scheduled pod whose engine container has the given status and is not ready."""
    container = {"name": "engine", "ready": False, "restartCount": 0, **engine}
    return {
        "phase": "Running",
        "conditions": [condition("PodScheduled", "True"), condition("ContainersReady", "False")],
        "containerStatuses": [container],
    }


def pods(*manifests: Manifest) -> tuple[PodView, ...]:
    """Views of pod manifests."""
    return tuple(PodView.from_manifest(item) for item in manifests)
