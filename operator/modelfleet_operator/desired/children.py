"""The children that do not depend on a revision: ServiceAccount, Service, PodDisruptionBudget. PURE."""

from __future__ import annotations

from typing import Any

from modelfleet_api import names

from modelfleet_operator.desired.common import child_metadata, selector_labels
from modelfleet_operator.state import Resource


def desired_service_account(resource: Resource) -> dict[str, Any]:
    """The engine's identity; it gets no token, since an engine never talks to Kubernetes."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": child_metadata(resource, name=resource.name),
        "automountServiceAccountToken": False,
    }


def desired_service(resource: Resource) -> dict[str, Any]:
    """The model's URL: port 80 to the engines of all revisions, so that a rollout never loses it."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": child_metadata(resource, name=resource.name),
        "spec": {
            "type": "ClusterIP",
            "selector": selector_labels(resource),
            "ports": [
                {
                    "name": names.ENGINE_PORT_NAME,
                    "port": names.SERVICE_PORT,
                    "targetPort": names.ENGINE_PORT_NAME,
                    "protocol": "TCP",
                }
            ],
        },
    }


def desired_disruption_budget(resource: Resource) -> dict[str, Any]:
    """One voluntary eviction at a time; a pod that is not ready may always go."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": child_metadata(resource, name=resource.name),
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": selector_labels(resource)},
        },
    }
