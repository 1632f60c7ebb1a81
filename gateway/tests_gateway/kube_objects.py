"""LLMDeployments and engine pods as an API server gives them, for the tests of the Kubernetes source."""

from __future__ import annotations

from typing import Any

from modelfleet_api import names

CREATED = "2026-01-01T00:00:00Z"


def llm_deployment(name: str = "m", *, namespace: str = "shop", created: str = CREATED, **spec: Any) -> dict[str, Any]:
    """A stored LLMDeployment; `spec` adds to or replaces fields of its spec."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": created},
        "spec": {"model": {"source": "pvc://models/m"}, **spec},
    }


def model_route(name: str = "r", *, namespace: str = "shop", created: str = CREATED, **spec: Any) -> dict[str, Any]:
    """A stored ModelRoute."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.ROUTE_KIND,
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": created},
        "spec": spec,
    }


def engine_pod(
    name: str = "m-abc-0",
    *,
    namespace: str = "shop",
    model: str = "m",
    annotations: dict[str, str] | None = None,
    **status: Any,
) -> dict[str, Any]:
    """A running engine pod; its uid is `uid-<name>`; `status` adds to or replaces fields of its status."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{name}",
            "labels": pod_labels(model),
            "annotations": annotations or {},
        },
        "spec": {"containers": [engine_container()]},
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.7",
            "containerStatuses": [container_status(names.ENGINE_CONTAINER)],
            **status,
        },
    }


def pod_labels(model: str, *, revision: str = "abc") -> dict[str, str]:
    """The labels that an engine pod has from its operator."""
    return {names.LABEL_MODEL: model, names.LABEL_ROLE: names.ROLE_ENGINE, names.LABEL_REVISION: revision}


def engine_container(port: int = names.ENGINE_PORT) -> dict[str, Any]:
    """The container of the engine."""
    port_entry = {"name": names.ENGINE_PORT_NAME, "containerPort": port}
    return {"name": names.ENGINE_CONTAINER, "image": "i", "ports": [port_entry]}


def container_status(name: str, *, restarts: int = 0) -> dict[str, Any]:
    """What the kubelet says of a running container."""
    running = {"running": {"startedAt": CREATED}}
    return {"name": name, "image": "i", "imageID": "i", "ready": True, "restartCount": restarts, "state": running}
