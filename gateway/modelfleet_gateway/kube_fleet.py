"""LLMDeployments, engine pods and ModelRoutes, as the API server gives them, turned into a `Fleet`. PURE.

What users wrote is not parsed anew here: an old object may break a newer rule, and one odd object must not take the
rest of the fleet with it. What cannot be an endpoint is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeVar

from modelfleet_api import names

from modelfleet_gateway.fleet import Endpoint, Fleet, Model, ModelId
from modelfleet_gateway.kube_routes import RouteObject, owned_routes, route_object_of

Manifest = Mapping[str, Any]
# Namespace and name of an object; of a pod and of its model alike.
Key = tuple[str, str]

# Its containers have started; before that nothing listens, after it (Succeeded, Failed) nothing ever will.
PHASE_RUNNING = "Running"

T = TypeVar("T")


class FleetBook:
    """The objects seen so far, as models, endpoints and routes; `fleet` is a snapshot of them.

    Each object is translated once, when it changes: a pod's status changes more often than anything of it here.
    """

    def __init__(self) -> None:
        self._models: dict[Key, Model] = {}
        self._endpoints: dict[Key, Endpoint] = {}
        self._routes: dict[Key, RouteObject] = {}

    def take_model(self, key: Key, manifest: Manifest | None) -> bool:
        """Takes an LLMDeployment as it is now, None for one that is gone; whether that changes the fleet."""
        return _take(self._models, key, None if manifest is None else model_of(manifest))

    def take_pod(self, key: Key, manifest: Manifest | None) -> bool:
        """Takes a pod as it is now, None for one that is gone; whether that changes the fleet."""
        return _take(self._endpoints, key, None if manifest is None else endpoint_of(manifest))

    def take_route(self, key: Key, manifest: Manifest | None) -> bool:
        """Takes a ModelRoute as it is now, None for one that is gone; whether that changes the fleet."""
        if manifest is None:
            return _take(self._routes, key, None)
        created_at = _seconds(manifest["metadata"].get("creationTimestamp"))
        return _take(self._routes, key, route_object_of(manifest, created_at=created_at))

    def fleet(self) -> Fleet:
        """The snapshot: endpoints only of models that exist, names only of who has them first."""
        models = {model.id: model for model in self._models.values()}
        endpoints = {each.uid: each for each in self._endpoints.values() if each.model in models}
        routes = owned_routes(self._routes.values(), models=models)
        return Fleet(models=models, endpoints=endpoints, routes=routes)


def model_of(manifest: Manifest) -> Model | None:
    """The model; None while it is being deleted: its pods finish what they have."""
    metadata = manifest["metadata"]
    if "deletionTimestamp" in metadata:
        return None
    spec = manifest.get("spec") or {}
    return Model(
        id=ModelId(namespace=metadata["namespace"], name=metadata["name"]),
        served_name=(spec.get("model") or {}).get("name") or metadata["name"],
        created_at=_seconds(metadata.get("creationTimestamp")),
        is_suspended=spec.get("suspend") is True,
    )


def endpoint_of(pod: Manifest) -> Endpoint | None:
    """The engine in a pod; None for a pod without one, without an address, not started yet or over.

    Whether it is ready is for the gateway's own probe to say: a pod's Ready waits for the gateways.
    """
    metadata, status = pod["metadata"], pod.get("status") or {}
    labels = metadata.get("labels") or {}
    model, address = labels.get(names.LABEL_MODEL), status.get("podIP")
    if not model or not address or labels.get(names.LABEL_ROLE) != names.ROLE_ENGINE:
        return None
    if status.get("phase") != PHASE_RUNNING:
        return None
    host = f"[{address}]" if ":" in address else address
    return Endpoint(
        uid=metadata["uid"],
        model=ModelId(namespace=metadata["namespace"], name=model),
        base_url=f"http://{host}:{_port(pod)}",
        revision=labels.get(names.LABEL_REVISION, ""),
        is_draining=_is_draining(metadata),
        restarts=_restarts(status),
    )


def _is_draining(metadata: Manifest) -> bool:
    # A pod that somebody else deletes (an eviction, kubectl) drains as well, marked or not.
    return "deletionTimestamp" in metadata or names.ANNOTATION_DRAINING in (metadata.get("annotations") or {})


def _port(pod: Manifest) -> int:
    """The engine's own port: a podTemplate may have added others."""
    engine = _named((pod.get("spec") or {}).get("containers"), names.ENGINE_CONTAINER)
    port: int = _named(engine.get("ports"), names.ENGINE_PORT_NAME).get("containerPort", names.ENGINE_PORT)
    return port


def _restarts(status: Manifest) -> int:
    count: int = _named(status.get("containerStatuses"), names.ENGINE_CONTAINER).get("restartCount", 0)
    return count


def _named(items: list[Manifest] | None, name: str) -> Manifest:
    return next((item for item in items or [] if item.get("name") == name), {})


def _seconds(timestamp: str | None) -> float:
    return datetime.fromisoformat(timestamp).timestamp() if timestamp else 0.0


def _take(known: dict[Key, T], key: Key, value: T | None) -> bool:
    before = known.get(key)
    if value is None:
        known.pop(key, None)
    else:
        known[key] = value
    return before != value
