"""`ModelRoute` (namespaced): other names for models, weighted splits, and whose a short name is that two models serve.

Its cross-field rules stand twice, as those of LLMDeployment: see `rules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from modelfleet_api import names, rules
from modelfleet_api.base import ApiModel
from modelfleet_api.core_types import Namespace, OpaqueObject

ModelName = Annotated[str, Field(max_length=names.MAX_NAME_LENGTH, pattern=names.NAME_PATTERN)]
# What clients put in `model`, as LLMDeployment's model.name.
ShortName = Annotated[str, Field(min_length=1, max_length=200)]


class RouteTarget(ApiModel):
    """One destination and its share."""

    model: ModelName = Field(description="Name of an LLMDeployment.")
    namespace: Namespace | None = Field(default=None, description="The LLMDeployment's. Default: the route's own.")
    weight: int = Field(default=1, ge=0, le=1_000_000, description="Share among the targets; 0: nothing for now.")


class HeaderMatch(ApiModel):
    """A header that a request must have, with exactly this value."""

    name: str = Field(max_length=128, pattern=r"^[a-z0-9][-a-z0-9_]*$", description="In lower case.")
    value: str = Field(max_length=1024)


class RouteMatch(ApiModel):
    """Which requests."""

    headers: list[HeaderMatch] = Field(
        min_length=1,
        max_length=16,
        description="All of them.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )

    @field_validator("headers", mode="after")
    @classmethod
    def _each_header_once(cls, headers: list[HeaderMatch]) -> list[HeaderMatch]:
        if len({header.name for header in headers}) < len(headers):
            raise ValueError("Duplicate value: match.headers names one header twice")
        return headers


class Grant(ApiModel):
    """A served name that several models of the cluster have, and the model of this namespace that answers to it."""

    name: ShortName
    model: ModelName = Field(description="Name of an LLMDeployment of the route's own namespace.")


class ModelRouteSpec(ApiModel):
    """Requests for one of `aliases` that match go to `targets`."""

    aliases: list[ShortName] | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="What clients put in `model`. Absent: requests that match and name no model.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    match: RouteMatch | None = Field(default=None, description="Absent: every request for one of the aliases.")
    targets: list[RouteTarget] | None = Field(default=None, min_length=1, max_length=64)
    grants: list[Grant] | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )

    @field_validator("aliases", mode="after")
    @classmethod
    def _each_alias_once(cls, aliases: list[str] | None) -> list[str] | None:
        if aliases and len(set(aliases)) < len(aliases):
            raise ValueError("Duplicate value: aliases has one name twice")
        return aliases

    @field_validator("grants", mode="after")
    @classmethod
    def _each_grant_once(cls, grants: list[Grant] | None) -> list[Grant] | None:
        if grants and len({grant.name for grant in grants}) < len(grants):
            raise ValueError("Duplicate value: grants has one name twice")
        return grants

    @model_validator(mode="after")
    def _cross_field_rules(self) -> ModelRouteSpec:
        rules.check(rules.ROUTE_RULES, self.model_dump(mode="json", by_alias=True, exclude_none=True))
        return self


class ModelRoute(ApiModel):
    """A whole manifest, as a user writes it."""

    api_version: Literal["modelfleet.dev/v1alpha1"]
    kind: Literal["ModelRoute"]
    metadata: OpaqueObject
    spec: ModelRouteSpec


def parse_route(manifest: Mapping[str, Any]) -> ModelRoute:
    """The manifest as the API server would accept it; raises pydantic.ValidationError (a ValueError) otherwise."""
    return ModelRoute.model_validate(dict(manifest))
