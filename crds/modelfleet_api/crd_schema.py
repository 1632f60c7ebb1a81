"""From pydantic types to the CustomResourceDefinitions of our kinds, as plain dicts.

PURE: writes nothing. pydantic's JSON schema is no legal CRD schema; `structural` rewrites what the API server refuses
or alters ($defs, anyOf with null, const, titles, additionalProperties: false) and keeps bounds, defaults and the
`x-kubernetes-*` extensions that the types carry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, NoDefault

from modelfleet_api import names, rules
from modelfleet_api.crd_kinds import LLM_DEPLOYMENT, Kind

Schema = dict[str, Any]

# A structural schema may say these of a node; whatever else pydantic emits is an error here, not a surprise there.
_KEPT = (
    "type",
    "format",
    "description",
    "default",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "required",
)
_EXTENSION = "x-kubernetes-"
_INT_OR_STRING = "x-kubernetes-int-or-string"
_PRESERVE = "x-kubernetes-preserve-unknown-fields"
_DROPPED = ("title", "$defs")


class _WithFactoryDefaults(GenerateJsonSchema):
    """A member that defaults to a whole model gets `default: {}`, so that the defaults inside it apply."""

    def get_default_value(self, schema: Any) -> Any:
        factory = schema.get("default_factory")
        if isinstance(factory, type) and issubclass(factory, BaseModel):
            return {}
        default = super().get_default_value(schema)
        return NoDefault if default is None else default


def structural(model: type[BaseModel]) -> Schema:
    """The structural schema of a type; raises ValueError for what a CRD cannot say."""
    schema = model.model_json_schema(by_alias=True, schema_generator=_WithFactoryDefaults)
    return _convert(schema, schema.get("$defs", {}))


def _convert(node: Mapping[str, Any], defs: Mapping[str, Any]) -> Schema:
    node = _inlined(node, defs)
    if node.get(_INT_OR_STRING):
        return _int_or_string(node)
    known = {*_KEPT, *_DROPPED, "const", "properties", "items", "additionalProperties"}
    unknown = [key for key in node if key not in known and not key.startswith(_EXTENSION)]
    if unknown:
        raise ValueError(f"a CRD schema cannot have {', '.join(unknown)}: {dict(node)}")
    result = {key: value for key, value in node.items() if key in _KEPT or key.startswith(_EXTENSION)}
    if "const" in node:
        result["enum"] = [node["const"]]
    if "properties" in node:
        result["properties"] = {name: _convert(child, defs) for name, child in node["properties"].items()}
    if "items" in node:
        result["items"] = _convert(node["items"], defs)
        result.setdefault("x-kubernetes-list-type", "atomic")
    values = node.get("additionalProperties")
    if isinstance(values, Mapping) and not node.get(_PRESERVE):
        result["additionalProperties"] = _convert(values, defs)
    return result


def _inlined(node: Mapping[str, Any], defs: Mapping[str, Any]) -> Schema:
    """The node with its $ref and its anyOf-null replaced by what they stand for; its own words win."""
    own = {key: value for key, value in node.items() if key not in ("$ref", "anyOf")}
    if "$ref" in node:
        return _inlined({**defs[node["$ref"].removeprefix("#/$defs/")], **own}, defs)
    members = [member for member in node.get("anyOf", ()) if member != {"type": "null"}]
    if not members:
        return own
    if len(members) == 1:
        return _inlined({**members[0], **own}, defs)
    if own.get(_INT_OR_STRING):
        return {**own, "anyOf": members}
    raise ValueError(f"a union is not structural: {dict(node)}")


def _int_or_string(node: Mapping[str, Any]) -> Schema:
    """Bounds of the number and pattern of the string side by side: each applies to its own type only."""
    result = {key: value for key, value in node.items() if key in ("description", "default", _INT_OR_STRING)}
    for member in node.get("anyOf", ()):
        member = _convert(member, {})
        kind = member.pop("type")
        if kind not in ("integer", "string"):
            raise ValueError(f"int-or-string cannot be {kind}")
        if "enum" in member:
            result["pattern"] = f"^({'|'.join(member.pop('enum'))})$"
        result.update(member)
    return result


def _with_rules(spec: Schema, spec_rules: Iterable[rules.Rule]) -> Schema:
    for rule in spec_rules:
        node = spec
        for key in rule.path:
            node = node["properties"][key]
        node.setdefault("x-kubernetes-validations", []).append({"rule": rule.cel, "message": rule.message})
    return spec


def open_api_schema(kind: Kind = LLM_DEPLOYMENT) -> Schema:
    """The schema of a whole object, with every CEL rule in its place."""
    schema: Schema = {
        "type": "object",
        "description": kind.description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _with_rules(structural(kind.spec), kind.spec_rules),
        },
    }
    if kind.name_rule is not None:
        cel, message = kind.name_rule
        schema["x-kubernetes-validations"] = [{"rule": cel, "message": message}]
    if kind.status is not None:
        schema["properties"]["status"] = structural(kind.status)
    return schema


def crd_spec(kind: Kind = LLM_DEPLOYMENT) -> Schema:
    """`spec` of the CustomResourceDefinition: one storage version, and the kind's subresources."""
    version: Schema = {
        "name": names.VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": open_api_schema(kind)},
        "additionalPrinterColumns": [
            {"name": column.name, "type": column.type, "jsonPath": column.json_path} for column in kind.columns
        ],
    }
    if kind.subresources:
        version["subresources"] = dict(kind.subresources)
    return {
        "group": names.GROUP,
        "scope": "Namespaced" if kind.is_namespaced else "Cluster",
        "names": {
            "kind": kind.name,
            "listKind": f"{kind.name}List",
            "plural": kind.plural,
            "singular": kind.singular,
            "shortNames": list(kind.short_names),
            # Not in `all`: `kubectl delete all --all` would take models with it.
            "categories": ["modelfleet"],
        },
        "versions": [version],
    }


def crd(kind: Kind = LLM_DEPLOYMENT) -> Schema:
    """The whole CustomResourceDefinition."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": kind.definition_name},
        "spec": crd_spec(kind),
    }
