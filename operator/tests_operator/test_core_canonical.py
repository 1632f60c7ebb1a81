"""Comparing what is meant with what is there, and merging a user's template into ours."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import pytest
from modelfleet_operator.canonical import canonical_quantity, contains, digest, drop_empty, quantity_value
from modelfleet_operator.desired.normalise import normalise_pod_spec
from modelfleet_operator.errors import TemplateError
from modelfleet_operator.merge import merge_pod_template

TEMPLATE: dict[str, Any] = {
    "metadata": {"labels": {"modelfleet.dev/model": "chat"}},
    "spec": {
        "containers": [{"name": "engine", "image": "a", "env": [{"name": "A", "value": "1"}]}],
        "volumes": [{"name": "model", "emptyDir": {}}],
        "readinessGates": [{"conditionType": "modelfleet.dev/routable"}],
        "securityContext": {"runAsNonRoot": True},
    },
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1000m", "1"),
        ("1Gi", "1073741824"),
        ("1024Mi", "1073741824"),
        ("2", "2"),
        (3, "3"),
        ("1k", "1000"),
        ("5e3", "5000"),
    ],
)
def test_a_quantity_is_its_number(text: str | int, value: str) -> None:
    assert quantity_value(text) == Decimal(value)


@pytest.mark.parametrize(
    ("observed", "desired", "expected"),
    [
        ({"a": 1, "more": 2}, {"a": 1}, True),
        ({"a": 2}, {"a": 1}, False),
        ({}, {"a": 1}, False),
        ({"requests": {"cpu": "1"}}, {"requests": {"cpu": "1000m"}}, True),
        ({"requests": {"cpu": "1", "memory": "1Gi"}}, {"requests": {"cpu": "1"}}, False),
        ({"ports": [{"port": 80, "nodePort": 3}]}, {"ports": [{"port": 80}]}, True),
        ({"env": [{"name": "B"}, {"name": "A"}]}, {"env": [{"name": "A"}, {"name": "B"}]}, True),
        ({"env": [{"name": "A"}, {"name": "B"}]}, {"env": [{"name": "A"}]}, False),
        ({"args": ["a", "b"]}, {"args": ["b", "a"]}, False),
        (None, {"a": 1}, False),
        ({"requests": {"cpu": "1"}}, {"requests": {"cpu": "lots"}}, False),
        # The API server leaves these out ...
        ({}, {"hostNetwork": False, "initialDelaySeconds": 0, "value": "", "affinity": {}, "tolerations": []}, True),
        # ... and these it keeps: absent, they are drift.
        ({}, {"automountServiceAccountToken": False}, False),
        ({}, {"replicas": 0}, False),
    ],
)
def test_desired_leaves_are_looked_for_and_foreign_ones_are_not_ours(
    observed: Any, desired: Any, expected: bool
) -> None:
    assert contains(observed, desired) is expected


def test_empties_go_as_the_api_server_would_drop_them_and_an_empty_dir_stays() -> None:
    volumes: list[dict[str, Any]] = [{"emptyDir": {}}]
    given: dict[str, Any] = {"labels": {}, "env": [], "none": None, "zero": 0, "no": False, "volumes": volumes}
    assert drop_empty(given) == {"zero": 0, "no": False, "volumes": volumes}


def test_an_empty_label_selector_selects_everything_and_stays() -> None:
    given: dict[str, Any] = {"labelSelector": {}, "namespaceSelector": {}, "nodeSelector": {}}
    assert drop_empty(given) == {"labelSelector": {}, "namespaceSelector": {}}


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("1000m", "1"),
        ("1500m", "1500m"),
        ("0.5", "500m"),
        (2, "2"),
        ("1024Mi", "1Gi"),
        ("0.5Gi", "512Mi"),
        ("1536Mi", "1536Mi"),
        ("2000M", "2G"),
        ("5e3", "5k"),
        ("0Gi", "0"),
    ],
)
def test_equal_quantities_of_a_family_are_written_alike(text: str | int, canonical: str) -> None:
    assert canonical_quantity(text) == canonical


@pytest.mark.parametrize("text", ["", "abc", "1Q", "inf", "nan", "--1", "1 Gi i"])
def test_what_is_no_quantity_is_refused_as_such(text: str) -> None:
    with pytest.raises(ValueError, match="is no quantity"):
        canonical_quantity(text)


def test_a_container_is_written_as_the_api_server_would_give_it_back() -> None:
    env = [{"name": "A", "value": 1}, {"name": "B", "value": ""}, {"name": "C", "value": True}]
    env.append({"name": "A", "value": "x"})
    pod = {"containers": [{"name": "c", "env": env, "resources": {"limits": {"cpu": "2000m", "memory": "lots"}}}]}
    assert normalise_pod_spec(pod) == {
        "containers": [
            {
                "name": "c",
                "env": [{"name": "A", "value": "x"}, {"name": "B"}, {"name": "C", "value": "true"}],
                "resources": {"limits": {"cpu": "2", "memory": "lots"}},
            }
        ]
    }


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1}) != digest({"a": 1, "b": [2, 1]})


def test_a_patch_merges_keyed_lists_replaces_others_and_removes_on_request() -> None:
    patch = {
        "metadata": {"annotations": {"team": "x"}},
        "spec": {
            "containers": [
                {"name": "engine", "env": [{"name": "A", "value": "2"}, {"name": "B", "value": "3"}]},
                {"name": "sidecar", "image": "s"},
            ],
            "volumes": [{"name": "model", "$patch": "delete"}],
            "hostNetwork": True,
        },
    }
    assert merge_pod_template(TEMPLATE, patch) == {
        "metadata": {"labels": {"modelfleet.dev/model": "chat"}, "annotations": {"team": "x"}},
        "spec": {
            "containers": [
                {"name": "engine", "image": "a", "env": [{"name": "A", "value": "2"}, {"name": "B", "value": "3"}]},
                {"name": "sidecar", "image": "s"},
            ],
            "volumes": [],
            "readinessGates": [{"conditionType": "modelfleet.dev/routable"}],
            "securityContext": {"runAsNonRoot": True},
            "hostNetwork": True,
        },
    }
    assert TEMPLATE["spec"]["containers"][0]["env"] == [{"name": "A", "value": "1"}]


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        ({"spec": None}, "podTemplate.spec is an object, given: None"),
        ({"spec": ["x"]}, "podTemplate.spec is an object"),
        ({"spec": {"containers": {"engine": {}}}}, "containers is a list"),
        ({"spec": {"containers": None}}, "may not remove engine from containers"),
        ({"spec": {"securityContext": "none"}}, "securityContext is an object, given: 'none'"),
        ({"spec": {"$patch": "replace"}}, "the only directive is"),
        ({"spec": {"containers": [{"name": "more", "$retainKeys": ["image"]}]}}, "the only directive is"),
        (
            {"spec": {"readinessGates": [{"conditionType": "modelfleet.dev/routable", "$patch": "delete"}]}},
            "may not remove modelfleet.dev/routable from readinessGates",
        ),
    ],
)
def test_a_patch_that_cannot_be_merged_says_which_part_and_why(patch: dict[str, Any], words: str) -> None:
    with pytest.raises(TemplateError, match=re.escape(words)):
        merge_pod_template(TEMPLATE, patch)


def test_a_readiness_gate_of_the_users_comes_beside_ours() -> None:
    merged = merge_pod_template(TEMPLATE, {"spec": {"readinessGates": [{"conditionType": "example.com/lb"}]}})
    assert merged["spec"]["readinessGates"] == [
        {"conditionType": "modelfleet.dev/routable"},
        {"conditionType": "example.com/lb"},
    ]


def test_an_element_without_its_key_is_the_users_error() -> None:
    with pytest.raises(TemplateError, match="each element of containers needs name"):
        merge_pod_template(TEMPLATE, {"spec": {"containers": [{"image": "x"}]}})
