"""Every bound that the schemas state is broken by at least one bad sample of the tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from modelfleet_api.crd_schema import open_api_schema

from tests_api.kinds import JUDGED, JudgedKind

Schema = dict[str, Any]
Bound = tuple[str, str]

JSON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
}
BREAKS: dict[str, Callable[[Any, Any], bool]] = {
    "minimum": lambda value, least: isinstance(value, int) and value < least,
    "maximum": lambda value, most: isinstance(value, int) and value > most,
    "minLength": lambda value, least: isinstance(value, str) and len(value) < least,
    "maxLength": lambda value, most: isinstance(value, str) and len(value) > most,
    "pattern": lambda value, pattern: isinstance(value, str) and re.search(f"{pattern[:-1]}\\Z", value) is None,
    "enum": lambda value, words: value not in words,
    "maxItems": lambda value, most: isinstance(value, list) and len(value) > most,
    "minItems": lambda value, least: isinstance(value, list) and len(value) < least,
    "maxProperties": lambda value, most: isinstance(value, dict) and len(value) > most,
}


def children(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Members, items and values of a node, by the name they add to the path."""
    yield from schema.get("properties", {}).items()
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield "*", schema[key]


def stated(schema: Schema, path: str) -> Iterator[Bound]:
    """Every bound below and at this node; of types only those of scalars, which users get wrong."""
    yield from ((path, keyword) for keyword in BREAKS if keyword in schema)
    yield from ((f"{path}.{name}", "required") for name in schema.get("required", ()))
    for name, child in children(schema):
        yield from stated(child, f"{path}.{name}")


def broken(schema: Schema, value: Any, path: str) -> Iterator[Bound]:
    """The bounds that a value breaks."""
    kinds = JSON_TYPES.get(schema.get("type", ""), (object,))
    if not isinstance(value, kinds):
        return
    yield from ((path, keyword) for keyword, breaks in BREAKS.items() if breaks_it(schema, keyword, value, breaks))
    if isinstance(value, dict):
        yield from ((f"{path}.{name}", "required") for name in schema.get("required", ()) if name not in value)
    for name, child in children(schema):
        for member in members(value, name):
            yield from broken(child, member, f"{path}.{name}")


def breaks_it(schema: Schema, keyword: str, value: Any, breaks: Callable[[Any, Any], bool]) -> bool:
    return keyword in schema and breaks(value, schema[keyword])


def members(value: Any, name: str) -> list[Any]:
    """The members of a value that a schema's child speaks of."""
    if isinstance(value, list):
        return value
    if name == "*" and isinstance(value, dict):
        return list(value.values())
    return [value[name]] if isinstance(value, dict) and name in value else []


@pytest.mark.parametrize("judged", JUDGED, ids=lambda judged: judged.kind.name)
def test_every_bound_of_the_spec_is_broken_by_a_bad_sample(judged: JudgedKind) -> None:
    schema = open_api_schema(judged.kind)["properties"]["spec"]
    seen: set[Bound] = set()
    for sample in judged.samples:
        if sample.refusal is not None and "spec" in sample.manifest:
            seen |= set(broken(schema, sample.manifest["spec"], "spec"))

    unbroken = sorted(set(stated(schema, "spec")) - seen)
    assert "\n".join(f"{path} {keyword}" for path, keyword in unbroken) == ""
    assert len(seen) > 20
