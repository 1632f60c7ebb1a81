"""Comparing what is meant with what is there, and merging a user's template into ours."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from modelfleet_operator.canonical import contains, digest, drop_empty, quantity_value
from modelfleet_operator.merge import TemplateError, merge_pod_template

TEMPLATE: dict[str, Any] = {
    "metadata": {"labels": {"modelfleet.dev/model": "chat"}},
    "spec": {
        "containers": [{"name": "engine", "image": "a", "env": [{"name": "A", "value": "1"}]}],
        "volumes": [{"name": "model", "emptyDir": {}}],
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
    ],
)
def test_desired_leaves_are_looked_for_and_foreign_ones_are_not_ours(
    observed: Any, desired: Any, expected: bool
) -> None:
    assert contains(observed, desired) is expected


def test_empties_go_as_the_api_server_would_drop_them_and_an_empty_dir_stays() -> None:
    given: dict[str, Any] = {"labels": {}, "env": [], "none": None, "zero": 0, "no": False, "volumes": [{"emptyDir": {}}]}
    assert drop_empty(given) == {"zero": 0, "no": False, "volumes": [{"emptyDir": {}}]}


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
            "hostNetwork": True,
        },
    }
    assert TEMPLATE["spec"]["containers"][0]["env"] == [{"name": "A", "value": "1"}]


def test_an_element_without_its_key_is_the_users_error() -> None:
    with pytest.raises(TemplateError, match="each element of containers needs name"):
        merge_pod_template(TEMPLATE, {"spec": {"containers": [{"image": "x"}]}})
