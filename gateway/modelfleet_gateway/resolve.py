"""Which model a request means: by route, canonical id, served name, or the Host of a model's own URL. PURE.

A name means one model or none: where two models could be meant, the documented one is, never the newer. Must not know
tenants: who may use a model, and see its name, is for the caller to decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from modelfleet_gateway.fleet import Fleet, Model, ModelId, Route, RouteTarget

MAX_NEAREST = 3
# Names that share fewer of their pairs of letters than this are no help to who mistyped one.
MIN_LIKENESS = 0.4
# Of a longer name the beginning is compared; served names have at most 200 characters.
MAX_COMPARED_CHARACTERS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """`how`: "route", "canonical", "served-name" or "host", fit for a metric's label."""

    model: ModelId
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedModel:
    """A name that requests may use, and the models it can lead to: more than one for a split."""

    name: str
    models: tuple[ModelId, ...]
    # Seconds since 1970, of the oldest of them.
    created_at: float


class UnknownModelError(Exception):
    """No model is meant by the request. `nearest`: existing names that look like the one asked for."""

    def __init__(self, message: str, *, requested: str | None, nearest: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.requested = requested
        self.nearest = nearest


class AmbiguousHostError(Exception):
    """A bare Host that several models have. `names` are their canonical ids."""

    def __init__(self, host: str, names: tuple[str, ...]) -> None:
        super().__init__(f"The host {host!r} could be any of {', '.join(names)}: use one of these names")
        self.host = host
        self.names = names


def resolve(
    fleet: Fleet, *, requested: str | None, host: str | None, headers: Mapping[str, str], draw: float
) -> Resolved:
    """The model that a request means. `headers` have lower-case names; `draw` in [0, 1) decides a weighted split.

    Raises:
        UnknownModelError: nothing has that name, or the Host is the URL of a model that has another.
        AmbiguousHostError: a bare Host, several models have it, and the request names none of them.
    """
    of_host = _models_of_host(fleet, host)
    if of_host:
        return _resolve_on_host(fleet, of_host, requested=requested, host=str(host), headers=headers)
    if requested is None:
        route = _matching_route(fleet, None, headers)
        if route is None:
            raise UnknownModelError("The request names no model", requested=None)
        return Resolved(model=_drawn(_live_targets(fleet, route), draw), how="route")
    return _resolve_by_name(fleet, requested, headers=headers, draw=draw)


def listed_models(fleet: Fleet) -> list[ListedModel]:
    """What `/v1/models` shows: canonical ids, served names that one model has, aliases that need no header."""
    models_of: dict[str, set[ModelId]] = {}
    served_by: dict[str, list[ModelId]] = {}
    for model in fleet.models.values():
        served_by.setdefault(model.served_name, []).append(model.id)
    for name, ids in served_by.items():
        if len(ids) == 1:
            models_of[name] = set(ids)
    for route in fleet.routes:
        targets = {target.model for target in _live_targets(fleet, route)}
        if targets and not route.headers:
            models_of.update(dict.fromkeys(route.aliases, targets))
    for model_id in fleet.models:
        models_of[model_id.canonical] = {model_id}
    return [
        ListedModel(
            name=name, models=tuple(sorted(ids)), created_at=min(fleet.models[model_id].created_at for model_id in ids)
        )
        for name, ids in sorted(models_of.items())
    ]


def _resolve_by_name(fleet: Fleet, requested: str, *, headers: Mapping[str, str], draw: float) -> Resolved:
    route = _matching_route(fleet, requested, headers)
    if route is not None:
        return Resolved(model=_drawn(_live_targets(fleet, route), draw), how="route")
    name, _, namespace = requested.rpartition(".")
    canonical = ModelId(namespace=namespace, name=name)
    if canonical in fleet.models:
        return Resolved(model=canonical, how="canonical")
    serving = [model for model in fleet.models.values() if model.served_name == requested]
    if serving:
        return Resolved(model=min(serving, key=_age).id, how="served-name")
    raise _unknown(fleet, requested)


def _resolve_on_host(
    fleet: Fleet, of_host: list[Model], *, requested: str | None, host: str, headers: Mapping[str, str]
) -> Resolved:
    """On a model's own URL only that model answers, to any of its names: two namespaces may serve the same name."""
    meant = of_host if requested is None else [m for m in of_host if _is_name_of(fleet, m, requested, headers)]
    if len(meant) == 1:
        return Resolved(model=meant[0].id, how="host")
    names = tuple(sorted(model.id.canonical for model in of_host))
    if len(of_host) > 1:
        raise AmbiguousHostError(host, names)
    message = f"The host {host!r} is the URL of {names[0]}, which is not called {requested!r}"
    raise UnknownModelError(message, requested=requested, nearest=names)


def _is_name_of(fleet: Fleet, model: Model, requested: str, headers: Mapping[str, str]) -> bool:
    if requested in (model.id.canonical, model.served_name):
        return True
    route = _matching_route(fleet, requested, headers)
    return route is not None and any(target.model == model.id for target in _live_targets(fleet, route))


def _age(model: Model) -> tuple[float, ModelId]:
    return model.created_at, model.id


def _matching_route(fleet: Fleet, requested: str | None, headers: Mapping[str, str]) -> Route | None:
    """The one that asks for most headers, of those the first. Without a name only routes without an alias match."""
    matching = [
        route
        for route in fleet.routes
        if (requested in route.aliases if requested is not None else not route.aliases and route.headers)
        and all(headers.get(name) == value for name, value in route.headers.items())
        and _live_targets(fleet, route)
    ]
    return max(matching, key=lambda route: len(route.headers), default=None)


def _live_targets(fleet: Fleet, route: Route) -> list[RouteTarget]:
    return [target for target in route.targets if target.weight > 0 and target.model in fleet.models]


def _drawn(targets: list[RouteTarget], draw: float) -> ModelId:
    left = draw * sum(target.weight for target in targets)
    for target in targets:
        left -= target.weight
        if left < 0:
            return target.model
    return targets[-1].model


def _models_of_host(fleet: Fleet, host: str | None) -> list[Model]:
    """The models whose own URL this Host may be: `<name>.<namespace>[.svc...]`, or a bare `<name>`."""
    labels = _labels(host)
    if len(labels) == 1:
        return [model for model in fleet.models.values() if model.id.name == labels[0]]
    if len(labels) >= 2 and (len(labels) == 2 or labels[2] == "svc"):
        model = fleet.models.get(ModelId(namespace=labels[1], name=labels[0]))
        return [] if model is None else [model]
    return []


def _labels(host: str | None) -> list[str]:
    if not host or host.startswith("["):
        return []
    return host.partition(":")[0].lower().rstrip(".").split(".")


def _unknown(fleet: Fleet, requested: str) -> UnknownModelError:
    nearest = _nearest(requested, {listed.name for listed in listed_models(fleet)})
    message = f"The model {requested[:MAX_COMPARED_CHARACTERS]!r} does not exist"
    if nearest:
        message += f"; the nearest names are {', '.join(nearest)}"
    return UnknownModelError(message, requested=requested, nearest=nearest)


def _nearest(requested: str, names: Iterable[str]) -> tuple[str, ...]:
    """By shared pairs of letters: a thousand names in about 2 ms, where edit distances take a second."""
    pairs = _letter_pairs(requested)
    likeness = {name: _likeness(pairs, _letter_pairs(name)) for name in names}
    near = [name for name in likeness if likeness[name] >= MIN_LIKENESS]
    return tuple(sorted(near, key=lambda name: (-likeness[name], name))[:MAX_NEAREST])


def _letter_pairs(name: str) -> set[str]:
    padded = f"^{name[:MAX_COMPARED_CHARACTERS].lower()}$"
    return {padded[at : at + 2] for at in range(len(padded) - 1)}


def _likeness(one: set[str], other: set[str]) -> float:
    return 2 * len(one & other) / (len(one) + len(other))
