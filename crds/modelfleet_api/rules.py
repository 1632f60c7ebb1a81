"""The cross-field rules of all kinds, each once as CEL and once as a Python predicate, with one message.

PURE: predicates see the manifest form (camelCase dicts) of a spec whose single fields are already valid.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from modelfleet_api import names

Manifest = Mapping[str, Any]

# CEL's `matches` is RE2 and searches: hence ^ and $; here it is fullmatch, since Python's $ lets a newline through.
# No backslash in them (CEL strings have their own escapes), and only syntax that both know.
_DNS_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
# A claim is a DNS-1123 subdomain; the path inside it is printable ASCII and may not climb out.
PVC_SOURCE = f"^pvc://{_DNS_LABEL}([.]{_DNS_LABEL})*(/[ -.0-~]+)*/?$"
HF_SOURCE = r"^hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*(@[A-Za-z0-9][A-Za-z0-9._/-]*)?$"
GPU_RESOURCES = ("nvidia.com/", "amd.com/", "gpu.intel.com/", "habana.ai/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule: `cel` is evaluated on the object at `path` by the API server, `holds` on the same object here."""

    name: str
    path: tuple[str, ...]
    cel: str
    message: str
    holds: Callable[[Manifest], bool]


def _source_is_known(model: Manifest) -> bool:
    source = str(model["source"])
    if source.startswith("pvc://"):
        return re.fullmatch(PVC_SOURCE, source) is not None and ".." not in source.split("/")
    return re.fullmatch(HF_SOURCE, source) is not None


def _token_only_for_hub(model: Manifest) -> bool:
    return "tokenSecretRef" not in model or str(model["source"]).startswith("hf://")


def _env_is_ours(engine: Manifest) -> bool:
    return not any(str(item["name"]).startswith("MODELFLEET_") for item in engine.get("env", []))


def _env_has_one_value(engine: Manifest) -> bool:
    return not any("value" in item and "valueFrom" in item for item in engine.get("env", []))


def _env_has_one_source(engine: Manifest) -> bool:
    return all(len(item["valueFrom"]) == 1 for item in engine.get("env", []) if "valueFrom" in item)


def _resources_without_gpu(resources: Manifest) -> bool:
    keys = [*resources.get("requests", {}), *resources.get("limits", {})]
    return not any(key.startswith(GPU_RESOURCES) for key in keys)


_ENV_SOURCES = ("secretKeyRef", "configMapKeyRef", "fieldRef", "resourceFieldRef")
_ENV_SOURCES_CEL = ", ".join(f"has(e.valueFrom.{source})" for source in _ENV_SOURCES)
_GPU_CEL = " || ".join(f"k.startsWith('{prefix}')" for prefix in GPU_RESOURCES)

SPEC_RULES: tuple[Rule, ...] = (
    Rule(
        name="model-source",
        path=("model",),
        cel=(
            "self.source.startsWith('pvc://') ? "
            f"(self.source.matches('{PVC_SOURCE}') && !self.source.split('/').exists(p, p == '..')) : "
            f"self.source.matches('{HF_SOURCE}')"
        ),
        message="model.source must be pvc://claim/path (no '..') or hf://org/name@revision",
        holds=_source_is_known,
    ),
    Rule(
        name="token-only-for-hub",
        path=("model",),
        cel="!has(self.tokenSecretRef) || self.source.startsWith('hf://')",
        message="model.tokenSecretRef is only for hf:// sources",
        holds=_token_only_for_hub,
    ),
    Rule(
        name="env-not-ours",
        path=("engine",),
        cel="!has(self.env) || !self.env.exists(e, e.name.startsWith('MODELFLEET_'))",
        message="engine.env may not set MODELFLEET_* variables: they belong to the operator",
        holds=_env_is_ours,
    ),
    Rule(
        name="env-one-value",
        path=("engine",),
        cel="!has(self.env) || !self.env.exists(e, has(e.value) && has(e.valueFrom))",
        message="an entry of engine.env has either value or valueFrom, not both",
        holds=_env_has_one_value,
    ),
    Rule(
        name="env-one-source",
        path=("engine",),
        cel=f"!has(self.env) || self.env.all(e, !has(e.valueFrom) || [{_ENV_SOURCES_CEL}].exists_one(given, given))",
        message="valueFrom in engine.env has exactly one of " + ", ".join(_ENV_SOURCES),
        holds=_env_has_one_source,
    ),
    Rule(
        name="no-gpu-in-resources",
        path=("resources",),
        cel=(
            f"(!has(self.requests) || !self.requests.exists(k, {_GPU_CEL})) && "
            f"(!has(self.limits) || !self.limits.exists(k, {_GPU_CEL}))"
        ),
        message="GPUs are asked for by placement.gpu and parallelism, not in resources",
        holds=_resources_without_gpu,
    ),
)


def _route_is_whole(spec: Manifest) -> bool:
    return ("targets" in spec) == ("aliases" in spec or "match" in spec)


def _route_does_something(spec: Manifest) -> bool:
    return "targets" in spec or "grants" in spec


def _route_leads_somewhere(spec: Manifest) -> bool:
    return "targets" not in spec or any(target["weight"] > 0 for target in spec["targets"])


ROUTE_RULES: tuple[Rule, ...] = (
    Rule(
        name="route-is-whole",
        path=(),
        cel="has(self.targets) == (has(self.aliases) || has(self.match))",
        message="targets need aliases or match, and aliases and match need targets",
        holds=_route_is_whole,
    ),
    Rule(
        name="route-does-something",
        path=(),
        cel="has(self.targets) || has(self.grants)",
        message="a ModelRoute has targets or grants",
        holds=_route_does_something,
    ),
    Rule(
        name="route-leads-somewhere",
        path=(),
        cel="!has(self.targets) || self.targets.exists(t, t.weight > 0)",
        message="at least one of targets needs a weight above 0",
        holds=_route_leads_somewhere,
    ),
)


def name_is_valid(name: str) -> bool:
    """The rule on metadata.name: it becomes a Service name and a prefix."""
    return len(name) <= names.MAX_NAME_LENGTH and re.fullmatch(names.NAME_PATTERN, name) is not None


NAME_CEL = f"self.metadata.name.size() <= {names.MAX_NAME_LENGTH} && self.metadata.name.matches('{names.NAME_PATTERN}')"
NAME_MESSAGE = f"metadata.name must match {names.NAME_PATTERN} and have at most {names.MAX_NAME_LENGTH} characters"


TENANT_NAME_CEL = "self.metadata.name.size() <= 63 && self.metadata.name != 'anonymous'"
TENANT_NAME_MESSAGE = "metadata.name of a Tenant has at most 63 characters and is not anonymous: who has no key is that"


def tenant_name_is_valid(name: str) -> bool:
    """The rule on a Tenant's metadata.name: it is a label of metrics."""
    return len(name) <= 63 and name != "anonymous"


def check_spec(spec: Manifest) -> None:
    """Raises ValueError with the message of the first rule that the spec of an LLMDeployment breaks."""
    check(SPEC_RULES, spec)


def check(rules: Iterable[Rule], spec: Manifest) -> None:
    """Raises ValueError with the message of the first of these rules that the spec breaks."""
    for rule in rules:
        part: Any = spec
        for key in rule.path:
            part = part.get(key) if isinstance(part, Mapping) else None
        if isinstance(part, Mapping) and not rule.holds(part):
            raise ValueError(rule.message)
