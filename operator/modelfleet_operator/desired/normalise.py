"""A merged pod spec as the API server would give it back: env values are text, each name once, quantities canonical.

PURE. A number as an env value or a name given twice is answered by the API server with a 500, which reads like a
passing trouble; and `1000m` written for `1` is no reason to roll.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from modelfleet_operator.canonical import canonical_quantity
from modelfleet_operator.errors import TemplateError

_CONTAINER_LISTS = ("initContainers", "containers")


def normalise_pod_spec(pod: Mapping[str, Any]) -> dict[str, Any]:
    """The pod spec with every container normalised. TemplateError where an env entry has no name."""
    lists = {key: [_container(item) for item in pod[key]] for key in _CONTAINER_LISTS if pod.get(key)}
    return {**pod, **lists}


def _container(container: Mapping[str, Any]) -> dict[str, Any]:
    normal = dict(container)
    if isinstance(container.get("env"), list):
        normal["env"] = _environment(container["env"])
    resources = container.get("resources")
    if isinstance(resources, Mapping):
        normal["resources"] = {
            key: _quantities(value) if key in ("requests", "limits") else value for key, value in resources.items()
        }
    return normal


def _environment(items: list[Any]) -> list[dict[str, Any]]:
    """One entry a name, the last one; an empty value is an absent one, as the API server has it."""
    by_name: dict[str, dict[str, Any]] = {}
    for item in items:
        if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
            raise TemplateError("podTemplate: each element of env needs name")
        entry = {**item, "value": _text(item["value"])} if item.get("value") is not None else dict(item)
        by_name[item["name"]] = {key: value for key, value in entry.items() if key != "value" or value}
    return list(by_name.values())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _quantities(given: Any) -> Any:
    """Canonical quantities; what is none stays as it is, for the API server to refuse in its own words."""
    if not isinstance(given, Mapping):
        return given
    return {name: _quantity(value) for name, value in given.items()}


def _quantity(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return value
    try:
        return canonical_quantity(value)
    except ValueError:
        return value
