"""The few Kubernetes core types the contract embeds, with the sizes a structural schema must bound.

Only what users write under `LLMDeployment.spec`; types too deep to repeat (affinity, pod template) are
`OpaqueObject`: the API server keeps them whole and the operator reports what the API server says of the result.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BeforeValidator, Field, JsonValue

from modelfleet_api.base import ApiModel

Label = Annotated[str, Field(max_length=253)]
Namespace = Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
# Kubernetes' quantity syntax without the minus sign. `[.]` and not `\.`: the same text serves RE2, Rust and Python.
QUANTITY_PATTERN = r"^[+]?([0-9]+([.][0-9]*)?|[.][0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]+)?$"
Quantity = Annotated[
    Annotated[str, Field(max_length=32, pattern=QUANTITY_PATTERN)] | Annotated[int, Field(ge=0)],
    Field(json_schema_extra={"x-kubernetes-int-or-string": True}),
]
OpaqueObject = Annotated[
    dict[str, JsonValue], Field(max_length=64, json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})
]

_RFC3339 = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[-+]\d{2}:\d{2})")


def _require_rfc3339(value: Any) -> Any:
    """pydantic would also take numbers and other spellings, which the API server refuses."""
    if not isinstance(value, str) or _RFC3339.fullmatch(value) is None:
        raise ValueError(f"must be a date-time as in RFC 3339, for example 2026-01-31T08:00:00Z; given: {value!r}")
    return value


Rfc3339Time = Annotated[AwareDatetime, BeforeValidator(_require_rfc3339), Field(strict=False)]


class LocalObjectReference(ApiModel):
    """Names an object in the LLMDeployment's own namespace."""

    name: str = Field(min_length=1, max_length=253)


class KeySelector(ApiModel):
    """One key of a Secret or ConfigMap."""

    name: str = Field(min_length=1, max_length=253)
    key: str = Field(min_length=1, max_length=253)
    optional: bool | None = None


class FieldSelector(ApiModel):
    """A field of the pod (downward API)."""

    field_path: str = Field(min_length=1, max_length=253)
    api_version: str | None = Field(default=None, max_length=63)


class ResourceFieldSelector(ApiModel):
    """A resource of a container (downward API)."""

    resource: str = Field(min_length=1, max_length=63)
    container_name: str | None = Field(default=None, max_length=63)
    divisor: Quantity | None = None


class EnvVarSource(ApiModel):
    """Where an environment variable's value comes from; exactly one member."""

    secret_key_ref: KeySelector | None = None
    config_map_key_ref: KeySelector | None = None
    field_ref: FieldSelector | None = None
    resource_field_ref: ResourceFieldSelector | None = None


class EnvVar(ApiModel):
    """One environment variable: `value` or `valueFrom`."""

    name: str = Field(min_length=1, max_length=253, pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")
    value: str | None = Field(default=None, max_length=32768)
    value_from: EnvVarSource | None = None


class ResourceRequirements(ApiModel):
    """CPU, memory and ephemeral storage of one engine container. GPUs come from `parallelism` and `placement`."""

    requests: dict[str, Quantity] | None = Field(default=None, max_length=16)
    limits: dict[str, Quantity] | None = Field(default=None, max_length=16)


class Toleration(ApiModel):
    """core/v1 Toleration."""

    key: str | None = Field(default=None, max_length=316)
    operator: Literal["Exists", "Equal"] | None = None
    value: str | None = Field(default=None, max_length=63)
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = None


class TopologySpreadConstraint(ApiModel):
    """core/v1 TopologySpreadConstraint."""

    max_skew: int = Field(ge=1)
    topology_key: str = Field(min_length=1, max_length=316)
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    label_selector: OpaqueObject | None = None
    match_label_keys: list[Label] | None = Field(default=None, max_length=16)
    min_domains: int | None = Field(default=None, ge=1)
    node_affinity_policy: Literal["Honor", "Ignore"] | None = None
    node_taints_policy: Literal["Honor", "Ignore"] | None = None


def dump(value: ApiModel) -> dict[str, Any]:
    """The manifest form of a core type: camelCase keys, absent members left out."""
    return value.model_dump(mode="json", by_alias=True, exclude_none=True)
