"""ModelRoutes as routes of a `Fleet`, and whose a name is that several namespaces claim. PURE.

A canonical id is always its model's. Any other name belongs to the namespace of its oldest claim, be it a model's
served name, an alias or a grant: who comes later with the same name never takes requests away from who has it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from modelfleet_gateway.fleet import Model, ModelId, Route, RouteTarget

Manifest = Mapping[str, Any]
# When a name was claimed, and by which namespace: of two at the same second the first by name.
_Claim = tuple[float, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteObject:
    """One ModelRoute: its aliases as a route, and each grant as a route of its own."""

    namespace: str
    name: str
    created_at: float
    routes: tuple[Route, ...]


def route_object_of(manifest: Manifest, *, created_at: float) -> RouteObject:
    """What a ModelRoute says. One of targets or grants may be absent."""
    metadata, spec = manifest["metadata"], manifest.get("spec") or {}
    namespace = metadata["namespace"]
    routes = [
        Route(aliases=(grant["name"],), targets=(RouteTarget(model=ModelId(namespace=namespace, name=grant["model"])),))
        for grant in spec.get("grants") or []
    ]
    if spec.get("targets"):
        routes.insert(0, _route(spec, namespace=namespace))
    return RouteObject(namespace=namespace, name=metadata["name"], created_at=created_at, routes=tuple(routes))


def owned_routes(objects: Collection[RouteObject], *, models: Mapping[ModelId, Model]) -> tuple[Route, ...]:
    """The routes, oldest first, without the aliases that belong to somebody else."""
    if not objects:
        return ()
    owners = _owners(objects, models=models)
    canonical = {model_id.canonical for model_id in models}
    kept = []
    for item in sorted(objects, key=lambda item: (item.created_at, item.namespace, item.name)):
        for route in item.routes:
            aliases = tuple(
                alias
                for alias in route.aliases
                if alias not in canonical and owners.get(alias, (0.0, item.namespace))[1] == item.namespace
            )
            # Without aliases from the start it is for requests that name no model; with all of them lost it is none.
            if aliases or not route.aliases:
                kept.append(replace(route, aliases=aliases))
    return tuple(kept)


def _owners(objects: Iterable[RouteObject], *, models: Mapping[ModelId, Model]) -> dict[str, _Claim]:
    owners: dict[str, _Claim] = {}
    for name, claim in _claims(objects, models=models):
        owners[name] = min(claim, owners.get(name, claim))
    return owners


def _claims(objects: Iterable[RouteObject], *, models: Mapping[ModelId, Model]) -> Iterator[tuple[str, _Claim]]:
    for model in models.values():
        yield model.served_name, (model.created_at, model.id.namespace)
    for item in objects:
        for route in item.routes:
            # A route to nowhere holds no name: it would only keep others from it.
            if any(target.model in models for target in route.targets):
                yield from ((alias, (item.created_at, item.namespace)) for alias in route.aliases)


def _route(spec: Manifest, *, namespace: str) -> Route:
    headers = (spec.get("match") or {}).get("headers") or []
    return Route(
        aliases=tuple(spec.get("aliases") or ()),
        targets=tuple(
            RouteTarget(
                model=ModelId(namespace=target.get("namespace") or namespace, name=target["model"]),
                weight=target.get("weight", 1),
            )
            for target in spec["targets"]
        ),
        headers={header["name"]: header["value"] for header in headers},
    )
