"""Small manifests for the tests of this package."""

from __future__ import annotations

from typing import Any

from modelfleet_kube.resources import CONFIG_MAP, DEPLOYMENT, ObjectRef


def config_map(
    *, name: str, namespace: str, data: dict[str, str] | None = None, labels: dict[str, str] | None = None
) -> dict[str, Any]:
    """A ConfigMap as an apply body."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace, "labels": labels or {}},
        "data": data or {},
    }


def config_map_ref(*, name: str, namespace: str) -> ObjectRef:
    """Where it is."""
    return ObjectRef(kind=CONFIG_MAP, name=name, namespace=namespace)


def deployment(*, name: str, namespace: str, container: dict[str, Any] | None = None) -> dict[str, Any]:
    """A minimal Deployment; `container` adds to or replaces fields of its one container."""
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "c", "image": "i", **(container or {})}]},
            },
        },
    }


def deployment_ref(*, name: str, namespace: str) -> ObjectRef:
    """Where it is."""
    return ObjectRef(kind=DEPLOYMENT, name=name, namespace=namespace)
