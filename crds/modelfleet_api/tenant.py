"""`Tenant` (cluster): who may ask for which models, and how much. What it means is in the gateway.

No key is in it, nor a key's hash: they are in Secrets that it names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from modelfleet_api import rules
from modelfleet_api.base import ApiModel
from modelfleet_api.core_types import Namespace, OpaqueObject

# JSON numbers are exact up to here.
_LARGEST_COUNT = 2**53
CanonicalId = Annotated[
    str,
    Field(
        min_length=3,
        max_length=104,
        pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?[.][a-z0-9]([-a-z0-9]*[a-z0-9])?$",
    ),
]


class SecretKeyReference(ApiModel):
    """One key of a Secret in any namespace: a Tenant has none of its own."""

    name: str = Field(min_length=1, max_length=253)
    namespace: Namespace
    key: str = Field(min_length=1, max_length=253)


class TenantSpec(ApiModel):
    """What a tenant's requests may do. A limit that is absent is none."""

    keys: list[SecretKeyReference] | None = Field(
        default=None,
        max_length=16,
        description="Secrets that hold the SHA-256 of an API key in hexadecimal; the key itself is stored nowhere.",
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["namespace", "name", "key"],
        },
    )
    allowed_models: list[CanonicalId] | None = Field(
        default=None,
        max_length=256,
        description="Canonical ids, <name>.<namespace>. Absent: every model; empty: none.",
    )
    requests_per_minute: int | None = Field(default=None, ge=1, le=_LARGEST_COUNT, description="Of any minute.")
    tokens_per_minute: int | None = Field(
        default=None, ge=1, le=_LARGEST_COUNT, description="Prompt and answer, of any minute."
    )
    tokens_per_day: int | None = Field(
        default=None, ge=1, le=_LARGEST_COUNT, description="Prompt and answer, from midnight to midnight UTC."
    )
    max_concurrent: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Requests that run or wait at the same time."
    )
    priority: int = Field(
        default=0,
        ge=-1_000_000,
        le=1_000_000,
        description="The lowest number, hence the soonest, that its requests may ask for; they have it if they do not.",
    )
    weight: int = Field(
        default=1, ge=1, le=10_000, description="Its share of the tokens where tenants wait for the same model."
    )
    salt_secret_ref: SecretKeyReference | None = Field(
        default=None,
        description="Tenants of one salt share cached prompts, others do not. Absent: a salt of this tenant alone.",
    )

    @field_validator("keys", mode="after")
    @classmethod
    def _each_key_once(cls, keys: list[SecretKeyReference] | None) -> list[SecretKeyReference] | None:
        if keys and len(set(keys)) < len(keys):
            raise ValueError("Duplicate value: keys names one key of a Secret twice")
        return keys


class Tenant(ApiModel):
    """A whole manifest, as an administrator writes it."""

    api_version: Literal["modelfleet.dev/v1alpha1"]
    kind: Literal["Tenant"]
    metadata: OpaqueObject
    spec: TenantSpec

    @model_validator(mode="after")
    def _name_rule(self) -> Self:
        if not rules.tenant_name_is_valid(str(self.metadata.get("name", ""))):
            raise ValueError(rules.TENANT_NAME_MESSAGE)
        return self


def parse_tenant(manifest: Mapping[str, Any]) -> Tenant:
    """The manifest as the API server would accept it; raises pydantic.ValidationError (a ValueError) otherwise."""
    return Tenant.model_validate(dict(manifest))
