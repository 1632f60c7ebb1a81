"""`LLMDeployment.status`: observations only. Written by the operator, on change."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from modelfleet_api.base import WireModel

CONDITION_LIST = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
REVISION_LIST = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}


class StatusCondition(WireModel):
    """metav1.Condition."""

    type: str = Field(max_length=316)
    status: Literal["True", "False", "Unknown"]
    reason: str = Field(max_length=1024)
    message: str = Field(max_length=32768)
    observed_generation: int | None = Field(default=None, ge=0)
    last_transition_time: AwareDatetime


class RevisionStatus(WireModel):
    """One live revision, newest first."""

    name: str = Field(max_length=253)
    revision: int = Field(ge=1)
    replicas: int = Field(ge=0)
    ready_replicas: int = Field(ge=0)


class ModelStatus(WireModel):
    """What is served."""

    name: str | None = Field(default=None, max_length=200)
    revision: str | None = Field(default=None, max_length=253)


class LLMDeploymentStatus(WireModel):
    """The observed state of one model's fleet."""

    observed_generation: int | None = Field(default=None, ge=0)
    url: str | None = Field(default=None, max_length=512)
    # The label selector of the pods, for /scale (an HPA reads it).
    selector: str | None = Field(default=None, max_length=1024)
    replicas: int | None = Field(default=None, ge=0)
    ready_replicas: int | None = Field(default=None, ge=0)
    draining_replicas: int | None = Field(default=None, ge=0)
    desired_replicas: int | None = Field(default=None, ge=0)
    current_revision: str | None = Field(default=None, max_length=253)
    update_revision: str | None = Field(default=None, max_length=253)
    revisions: Annotated[list[RevisionStatus] | None, Field(max_length=32, json_schema_extra=REVISION_LIST)] = None
    model: ModelStatus | None = None
    conditions: Annotated[list[StatusCondition] | None, Field(max_length=32, json_schema_extra=CONDITION_LIST)] = None
