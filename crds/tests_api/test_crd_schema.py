"""What the generator makes of pydantic's constructs, and that the files in the tree are what it makes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from modelfleet_api import generate
from modelfleet_api.base import ApiModel
from modelfleet_api.core_types import OpaqueObject, Quantity
from modelfleet_api.crd_kinds import KINDS, Kind
from modelfleet_api.crd_schema import open_api_schema, structural
from modelfleet_api.llmdeployment import MaxModelLen, parse_manifest
from pydantic import Field

EXAMPLES = sorted((generate.ROOT / "examples").glob("*.yaml"))


class Inner(ApiModel):
    """Inside."""

    word: Literal["One", "Two"] = "One"


class Outer(ApiModel):
    """Outside."""

    required: str = Field(min_length=1, max_length=5, pattern="^a")
    inner: Inner = Field(default_factory=Inner)
    optional: Inner | None = None
    one: Literal[1] = 1
    count: Annotated[int, Field(ge=0, le=9)] | None = None
    amount: Quantity | None = None
    length: MaxModelLen = "auto"
    opaque: OpaqueObject | None = None
    labels: dict[str, str] | None = Field(default=None, max_length=3)
    words: list[str] | None = Field(default=None, max_length=2)


class Broken(ApiModel):
    """A union that a CRD cannot say."""

    either: Inner | str


def nodes(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every schema node below and with this one."""
    yield schema
    for child in schema.get("properties", {}).values():
        yield from nodes(child)
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from nodes(schema[key])


def test_each_pydantic_construct_becomes_its_structural_counterpart() -> None:
    inner = {
        "type": "object",
        "description": "Inside.",
        "properties": {"word": {"type": "string", "enum": ["One", "Two"], "default": "One"}},
    }
    schema = structural(Outer)
    amount = schema["properties"].pop("amount")

    assert schema == {
        "type": "object",
        "description": "Outside.",
        "required": ["required"],
        "properties": {
            "required": {"type": "string", "minLength": 1, "maxLength": 5, "pattern": "^a"},
            "inner": {**inner, "default": {}},
            "optional": inner,
            "one": {"type": "integer", "enum": [1], "default": 1},
            "count": {"type": "integer", "minimum": 0, "maximum": 9},
            "length": {
                "x-kubernetes-int-or-string": True,
                "minimum": 1,
                "maximum": 10_485_760,
                "pattern": "^(auto)$",
                "default": "auto",
            },
            "opaque": {"type": "object", "maxProperties": 64, "x-kubernetes-preserve-unknown-fields": True},
            "labels": {"type": "object", "maxProperties": 3, "additionalProperties": {"type": "string"}},
            "words": {
                "type": "array",
                "maxItems": 2,
                "items": {"type": "string"},
                "x-kubernetes-list-type": "atomic",
            },
        },
    }
    assert amount.keys() == {"x-kubernetes-int-or-string", "minimum", "pattern", "maxLength"}


def test_what_a_crd_cannot_say_is_an_error_and_not_dropped() -> None:
    with pytest.raises(ValueError, match="a union is not structural"):
        structural(Broken)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_string_list_and_map_of_the_spec_is_bounded(kind: Kind) -> None:
    unbounded = []
    for node in nodes(open_api_schema(kind)["properties"]["spec"]):
        node_type = node.get("type")
        if node_type == "string" and not {"maxLength", "enum", "format"} & node.keys():
            unbounded.append(node)
        if node_type == "array" and "maxItems" not in node:
            unbounded.append(node)
        if node_type == "object" and "properties" not in node and "maxProperties" not in node:
            unbounded.append(node)
    assert unbounded == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_spec_has_no_floats(kind: Kind) -> None:
    assert [node for node in nodes(open_api_schema(kind)) if node.get("type") == "number"] == []


def test_the_generated_files_are_the_committed_ones() -> None:
    assert generate.main(["--check"]) == 0


def test_check_says_what_is_stale_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate.main(["--root", str(tmp_path)])
    target = tmp_path / generate.crd_path()
    edited = target.read_text(encoding="utf-8").replace("- llm\n", "- llms\n")
    target.write_text(edited, encoding="utf-8")
    capsys.readouterr()

    assert generate.main(["--check", "--root", str(tmp_path)]) == 1

    output = capsys.readouterr()
    assert "-    - llms\n+    - llm\n" in output.out
    assert "make generate" in output.err
    assert target.read_text(encoding="utf-8") == edited


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_each_shipped_example_is_valid(example: Path) -> None:
    parse_manifest(yaml.safe_load(example.read_text(encoding="utf-8")))


def test_there_are_examples() -> None:
    assert {path.name for path in EXAMPLES} >= {"smollm2.yaml", "hf.yaml"}
