"""Which model a request means."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelfleet_gateway.fleet import Route, RouteTarget
from modelfleet_gateway.resolve import (
    AmbiguousHostError,
    ListedModel,
    Resolved,
    UnknownModelError,
    listed_models,
    resolve,
)

from tests_gateway.routing_world import fleet, model, model_id

LLAMA_A = model("llama.team-a", serves="llama-8b", created_at=200.0)
LLAMA_B = model("llama.team-b", serves="llama-8b", created_at=100.0)
QWEN = model("qwen.team-a", serves="Qwen/Qwen3-8B", created_at=50.0)
FLEET_HOST = "modelfleet.modelfleet-system"


def route(
    *aliases: str, to: tuple[tuple[str, int], ...] = (("qwen.team-a", 1),), headers: dict[str, str] | None = None
) -> Route:
    targets = tuple(RouteTarget(model=model_id(canonical), weight=weight) for canonical, weight in to)
    return Route(aliases=aliases, targets=targets, headers=headers or {})


def asked(
    requested: str | None,
    *routes: Route,
    host: str | None = FLEET_HOST,
    headers: dict[str, str] | None = None,
    draw: float = 0.0,
) -> Resolved:
    known = fleet(LLAMA_A, LLAMA_B, QWEN, routes=routes)
    return resolve(known, requested=requested, host=host, headers=headers or {}, draw=draw)


@pytest.mark.parametrize(
    ("requested", "canonical", "how"),
    [
        ("llama.team-a", "llama.team-a", "canonical"),
        ("Qwen/Qwen3-8B", "qwen.team-a", "served-name"),
        # Both serve it: the older one has the name.
        ("llama-8b", "llama.team-b", "served-name"),
    ],
)
def test_a_canonical_id_and_a_served_name_lead_to_the_model(requested: str, canonical: str, how: str) -> None:
    assert asked(requested) == Resolved(model=model_id(canonical), how=how)


def test_of_two_models_of_one_age_that_serve_a_name_the_first_by_namespace_has_it() -> None:
    known = fleet(model("x.zeta", serves="same"), model("x.alpha", serves="same"))
    assert resolve(known, requested="same", host=None, headers={}, draw=0.0).model == model_id("x.alpha")


def test_an_alias_comes_before_a_served_name() -> None:
    assert asked("llama-8b", route("llama-8b")) == Resolved(model=QWEN.id, how="route")


def test_a_split_follows_the_draw_by_weight() -> None:
    split = route("chat", to=(("llama.team-a", 90), ("llama.team-b", 10), ("qwen.team-a", 0)))
    drawn = [asked("chat", split, draw=draw).model for draw in (0.0, 0.899, 0.9, 0.999)]
    assert drawn == [LLAMA_A.id, LLAMA_A.id, LLAMA_B.id, LLAMA_B.id]


def test_a_route_for_a_header_takes_only_requests_that_carry_it() -> None:
    routes = (route("chat"), route("chat", to=(("llama.team-a", 1),), headers={"x-canary": "yes"}))
    assert asked("chat", *routes).model == QWEN.id
    assert asked("chat", *routes, headers={"x-canary": "no"}).model == QWEN.id
    assert asked("chat", *routes, headers={"x-canary": "yes"}).model == LLAMA_A.id


def test_a_route_without_an_alias_answers_requests_that_name_no_model() -> None:
    by_header = route(headers={"x-model": "qwen"})
    assert asked(None, by_header, headers={"x-model": "qwen"}) == Resolved(model=QWEN.id, how="route")
    with pytest.raises(UnknownModelError, match="names no model"):
        asked(None, by_header)


def test_a_route_to_models_that_are_gone_is_no_route() -> None:
    gone = route("Qwen/Qwen3-8B", to=(("ghost.team-a", 1),))
    assert asked("Qwen/Qwen3-8B", gone) == Resolved(model=QWEN.id, how="served-name")
    half = route("chat", to=(("ghost.team-a", 99), ("qwen.team-a", 1)))
    assert asked("chat", half, draw=0.5).model == QWEN.id


def test_an_unknown_model_is_answered_with_at_most_three_names_that_look_like_it() -> None:
    with pytest.raises(UnknownModelError) as caught:
        asked("lama.team-a")
    assert caught.value.requested == "lama.team-a"
    assert caught.value.nearest == ("llama.team-a", "llama.team-b", "qwen.team-a")
    assert str(caught.value) == (
        "The model 'lama.team-a' does not exist; the nearest names are llama.team-a, llama.team-b, qwen.team-a"
    )


def test_a_name_like_no_other_is_answered_without_guesses() -> None:
    with pytest.raises(UnknownModelError) as caught:
        asked("gpt")
    assert caught.value.nearest == ()
    assert str(caught.value) == "The model 'gpt' does not exist"


@pytest.mark.parametrize(
    "host",
    [
        "qwen",
        "qwen:80",
        "qwen.team-a",
        "QWEN.Team-A",
        "qwen.team-a:8080",
        "qwen.team-a.svc",
        "qwen.team-a.svc.cluster.local",
        "qwen.team-a.svc.cluster.local.",
    ],
)
def test_a_models_own_url_needs_no_model_in_the_body(host: str) -> None:
    assert asked(None, host=host) == Resolved(model=QWEN.id, how="host")


@pytest.mark.parametrize("host", [None, "", "[::1]:8000", "10.0.0.1:80", "api.example.com", "qwen.team-a.example"])
def test_any_other_host_is_the_fleets(host: str | None) -> None:
    assert asked("Qwen/Qwen3-8B", host=host) == Resolved(model=QWEN.id, how="served-name")
    with pytest.raises(UnknownModelError):
        asked(None, host=host)


@pytest.mark.parametrize("canonical", ["llama.team-a", "llama.team-b"])
def test_on_its_own_url_each_of_two_models_answers_to_the_name_both_serve(canonical: str) -> None:
    assert asked("llama-8b", host=canonical) == Resolved(model=model_id(canonical), how="host")


def test_a_models_url_never_leads_to_another_model() -> None:
    with pytest.raises(UnknownModelError) as caught:
        asked("llama-8b", host="qwen.team-a")
    assert caught.value.nearest == ("qwen.team-a",)
    assert str(caught.value) == "The host 'qwen.team-a' is the URL of qwen.team-a, which is not called 'llama-8b'"


def test_an_alias_on_a_models_url_leads_to_it_where_the_route_does() -> None:
    split = route("chat", to=(("llama.team-a", 99), ("qwen.team-a", 1)))
    assert asked("chat", split, host="qwen.team-a").model == QWEN.id
    with pytest.raises(UnknownModelError):
        asked("chat", split, host="llama.team-b")


def test_a_bare_host_of_two_models_is_refused_with_their_full_names() -> None:
    with pytest.raises(AmbiguousHostError) as caught:
        asked(None, host="llama")
    assert caught.value.names == ("llama.team-a", "llama.team-b")
    with pytest.raises(AmbiguousHostError):
        asked("llama-8b", host="llama")
    assert asked("llama.team-a", host="llama") == Resolved(model=LLAMA_A.id, how="host")


def test_the_list_has_canonical_ids_unique_served_names_and_aliases_sorted() -> None:
    split = route("chat", to=(("llama.team-a", 1), ("qwen.team-a", 1)))
    hidden = route("canary", headers={"x-canary": "yes"})
    known = fleet(LLAMA_A, LLAMA_B, QWEN, routes=(split, hidden, route("gone", to=(("ghost.team-a", 1),))))
    assert listed_models(known) == [
        ListedModel(name="Qwen/Qwen3-8B", models=(QWEN.id,), created_at=50.0),
        ListedModel(name="chat", models=(LLAMA_A.id, QWEN.id), created_at=50.0),
        ListedModel(name="llama.team-a", models=(LLAMA_A.id,), created_at=200.0),
        ListedModel(name="llama.team-b", models=(LLAMA_B.id,), created_at=100.0),
        ListedModel(name="qwen.team-a", models=(QWEN.id,), created_at=50.0),
    ]


@given(requested=st.none() | st.text(), host=st.none() | st.text(), draw=st.floats(0, 1, exclude_max=True))
def test_no_request_makes_it_fail_otherwise_than_documented(
    requested: str | None, host: str | None, draw: float
) -> None:
    with suppress(UnknownModelError, AmbiguousHostError):
        assert asked(requested, route("chat"), host=host, draw=draw).model in (LLAMA_A.id, LLAMA_B.id, QWEN.id)
