"""ModelRoutes as routes, and whose a name is: the oldest claim of another namespace is never overruled."""

from __future__ import annotations

from typing import Any

import pytest
from modelfleet_api.modelroute import parse_route
from modelfleet_gateway.fleet import ModelId, Route, RouteTarget
from modelfleet_gateway.kube_fleet import FleetBook

from tests_gateway.kube_objects import llm_deployment, model_route

M = ModelId(namespace="shop", name="m")
OLDER, OLD, NEW = "2025-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"
TO_M = [{"model": "m"}]


def routes_of(*objects: dict[str, Any]) -> tuple[Route, ...]:
    """The routes of a fleet of these LLMDeployments and ModelRoutes."""
    book = FleetBook()
    for item in objects:
        key = (item["metadata"]["namespace"], item["metadata"]["name"])
        take = book.take_route if item["kind"] == "ModelRoute" else book.take_model
        take(key, item)
    return book.fleet().routes


def aliases_of(*objects: dict[str, Any]) -> list[tuple[str, ...]]:
    """The aliases that are left of each route."""
    return [route.aliases for route in routes_of(*objects)]


def to(model: ModelId, weight: int = 1) -> RouteTarget:
    return RouteTarget(model=model, weight=weight)


def test_a_route_has_its_aliases_weights_and_headers_and_a_target_is_of_its_own_namespace_unless_it_says_another() -> (
    None
):
    manifest = model_route(
        aliases=["chat", "chat-latest"],
        match={"headers": [{"name": "x-team", "value": "red"}, {"name": "x-stage", "value": "canary"}]},
        targets=[{"model": "m", "weight": 90}, {"model": "n", "namespace": "lab", "weight": 10}],
    )
    parse_route(manifest)

    assert routes_of(llm_deployment(), manifest) == (
        Route(
            aliases=("chat", "chat-latest"),
            targets=(to(M, 90), to(ModelId(namespace="lab", name="n"), 10)),
            headers={"x-team": "red", "x-stage": "canary"},
        ),
    )


def test_a_grant_is_a_route_to_one_model_of_its_namespace() -> None:
    manifest = model_route(grants=[{"name": "chat", "model": "m"}])
    parse_route(manifest)
    assert routes_of(llm_deployment(), manifest) == (Route(aliases=("chat",), targets=(to(M),)),)


def test_a_route_without_aliases_is_for_requests_that_name_no_model() -> None:
    manifest = model_route(match={"headers": [{"name": "x-team", "value": "red"}]}, targets=TO_M)
    parse_route(manifest)
    assert routes_of(llm_deployment(), manifest) == (Route(aliases=(), targets=(to(M),), headers={"x-team": "red"}),)


@pytest.mark.parametrize(
    ("objects", "left"),
    [
        # A canonical id is its model's, whoever asks for it.
        ([model_route(aliases=["m.shop", "chat"], targets=TO_M)], [("chat",)]),
        ([model_route(namespace="evil", created=OLDER, aliases=["m.shop"], targets=[{"model": "x"}])], []),
        # The served name of an older model of another namespace, and of a younger one.
        ([model_route(namespace="lab", created=NEW, aliases=["m"], targets=[{"model": "m", "namespace": "shop"}])], []),
        (
            [model_route(namespace="lab", created=OLDER, aliases=["m"], targets=[{"model": "m", "namespace": "shop"}])],
            [("m",)],
        ),
        # In its own namespace a route may take a served name: that is a split.
        ([model_route(created=NEW, aliases=["m"], targets=[{"model": "m"}, {"model": "n"}])], [("m",)]),
        # Of two routes of different namespaces the older; of one namespace both, the older first.
        (
            [
                model_route(namespace="lab", created=NEW, aliases=["chat"], targets=[{"model": "n"}]),
                model_route(created=OLD, aliases=["chat"], targets=TO_M),
                llm_deployment("n", namespace="lab"),
            ],
            [("chat",)],
        ),
        (
            [
                model_route("b", created=OLD, aliases=["chat", "b"], targets=TO_M),
                model_route("a", created=NEW, aliases=["chat", "a"], targets=TO_M),
            ],
            [("chat", "b"), ("chat", "a")],
        ),
        # A route to nowhere keeps no name from others.
        (
            [
                model_route(namespace="lab", created=OLDER, aliases=["chat"], targets=[{"model": "gone"}]),
                model_route(created=NEW, aliases=["chat"], targets=TO_M),
            ],
            [("chat",)],
        ),
    ],
)
def test_a_name_belongs_to_the_namespace_that_had_it_first(
    objects: list[dict[str, Any]], left: list[tuple[str, ...]]
) -> None:
    assert aliases_of(llm_deployment(created=OLD), *objects) == left


def test_the_owner_of_a_name_is_also_who_gets_the_requests_when_another_asks_for_more_headers() -> None:
    mine = model_route(created=OLD, aliases=["chat"], targets=TO_M)
    theirs = model_route(
        namespace="evil",
        created=NEW,
        aliases=["chat"],
        match={"headers": [{"name": "x-team", "value": "red"}]},
        targets=[{"model": "trap"}],
    )
    trap = llm_deployment("trap", namespace="evil", created=NEW)
    assert routes_of(llm_deployment(), mine, theirs, trap) == (Route(aliases=("chat",), targets=(to(M),)),)


def test_a_name_is_free_again_when_its_route_or_its_model_is_gone() -> None:
    book = FleetBook()
    book.take_model(("shop", "m"), llm_deployment())
    book.take_model(("lab", "n"), llm_deployment("n", namespace="lab"))
    book.take_route(("shop", "r"), model_route(created=OLD, aliases=["chat"], targets=TO_M))
    book.take_route(("lab", "r"), model_route(namespace="lab", created=NEW, aliases=["chat"], targets=[{"model": "n"}]))
    assert [route.targets[0].model.namespace for route in book.fleet().routes] == ["shop"]

    assert book.take_route(("shop", "r"), None)

    assert [route.targets[0].model.namespace for route in book.fleet().routes] == ["lab"]
    assert not book.take_route(("shop", "r"), None)
