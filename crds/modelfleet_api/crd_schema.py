"""From pydantic types to the CustomResourceDefinition of `LLMDeployment`, as a plain dict.

PURE: writes nothing. pydantic's JSON schema is no legal CRD schema; `structural` rewrites what the API server refuses
or alters ($defs, anyOf with null, const, titles, additionalProperties: false) and keeps bounds, defaults and the
`x-kubernetes-*` extensions that the types carry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, NoDefault

from modelfleet_api import names, rules
from modelfleet_api.llmdeployment import LLMDeploymentSpec
from modelfleet_api.status import LLMDeploymentStatus

Schema = dict[str, Any]

PRINTER_COLUMNS: tuple[Schema, ...] = (
    {"name": "Model", "type": "string", "jsonPath": ".spec.model.source"},
    {"name": "Desired", "type": "integer", "jsonPath": ".status.desiredReplicas"},
    {"name": "Ready", "type": "integer", "jsonPath": ".status.readyReplicas"},
    {"name": "Reason", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].reason'},
    {"name": "URL", "type": "string", "jsonPath": ".status.url"},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
)

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


def _with_rules(spec: Schema) -> Schema:
    for rule in rules.SPEC_RULES:
        node = spec
        for key in rule.path:
            node = node["properties"][key]
        node.setdefault("x-kubernetes-validations", []).append({"rule": rule.cel, "message": rule.message})
    return spec


def open_api_schema() -> Schema:
    """The schema of a whole LLMDeployment object, with every CEL rule in its place."""
    return {
        "type": "object",
        "description": "A fleet of inference engines that serve one model behind one URL.",
        "required": ["spec"],
        "x-kubernetes-validations": [{"rule": rules.NAME_CEL, "message": rules.NAME_MESSAGE}],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _with_rules(structural(LLMDeploymentSpec)),
            "status": structural(LLMDeploymentStatus),
        },
    }


def crd_spec() -> Schema:
    """`spec` of the CustomResourceDefinition: one storage version, the status and scale subresources."""
    version = {
        "name": names.VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": open_api_schema()},
        "additionalPrinterColumns": list(PRINTER_COLUMNS),
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
    }
    return {
        "group": names.GROUP,
        "scope": "Namespaced",
        "names": {
            "kind": names.KIND,
            "listKind": f"{names.KIND}List",
            "plural": names.PLURAL,
            "singular": names.SINGULAR,
            "shortNames": [names.SHORT_NAME],
            # Not in `all`: `kubectl delete all --all` would take models with it.
            "categories": ["modelfleet"],
        },
        "versions": [version],
    }


def crd() -> Schema:
    """The whole CustomResourceDefinition."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.PLURAL}.{names.GROUP}"},
        "spec": crd_spec(),
    }
