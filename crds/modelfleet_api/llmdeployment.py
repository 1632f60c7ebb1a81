"""`LLMDeployment`: what a user writes. The one source of the CRD; see `crd_schema` for how it is generated.

Every cross-field rule stands twice, as CEL for the API server and as a pydantic validator, from one table in
`rules`, and both are tested with the same manifests. No floats; every list, map and string is bounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from modelfleet_api import rules
from modelfleet_api.base import ApiModel
from modelfleet_api.core_types import (
    EnvVar,
    Label,
    LocalObjectReference,
    OpaqueObject,
    ResourceRequirements,
    Rfc3339Time,
    Toleration,
    TopologySpreadConstraint,
)

DEFAULT_DRAIN_TIMEOUT_SECONDS = 300
DEFAULT_PROGRESS_DEADLINE_SECONDS = 600

# Either a number of tokens or the word "auto".
MaxModelLen = Annotated[
    Annotated[int, Field(ge=1, le=10_485_760)] | Literal["auto"],
    Field(json_schema_extra={"x-kubernetes-int-or-string": True}),
]


class TokenSecretRef(ApiModel):
    """The Secret key holding the hub token that `hf://` needs for private or gated models."""

    name: str = Field(min_length=1, max_length=253)
    key: str = Field(min_length=1, max_length=253)


class Model(ApiModel):
    """Which weights, and under which name they are served."""

    source: str = Field(
        min_length=1,
        max_length=1024,
        description="Where the weights are: pvc://claim/path or hf://org/name@revision.",
    )
    name: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="The name clients put in `model`. Default: metadata.name.",
    )
    token_secret_ref: TokenSecretRef | None = Field(
        default=None, description="Hub token for hf:// sources, from a Secret in the same namespace."
    )


class Engine(ApiModel):
    """How one engine process runs. Sizes in tokens or sequences."""

    max_model_len: MaxModelLen = Field(
        default="auto",
        description="Longest prompt plus answer in tokens; auto: the smaller of the model's maximum and the KV cache.",
    )
    max_num_seqs: int | None = Field(default=None, ge=1, le=4096, description="Most sequences in one forward pass.")
    max_num_batched_tokens: int | None = Field(
        default=None, ge=1, le=1_048_576, description="Token budget of one forward pass."
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto", description="Data type of weights and activations; auto: what the checkpoint says."
    )
    prefix_caching: bool = Field(
        default=True, description="Whether prompts with an equal beginning share its KV blocks, computed once."
    )
    itl_target_milliseconds: int | None = Field(
        default=None,
        ge=1,
        le=60_000,
        description="Prompts are computed in pieces so small that the time between two tokens stays below this.",
    )
    env: list[EnvVar] | None = Field(
        default=None,
        max_length=64,
        description="Environment of the engine container. MODELFLEET_* belongs to the operator.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )

    @field_validator("env", mode="after")
    @classmethod
    def _one_entry_a_name(cls, env: list[EnvVar] | None) -> list[EnvVar] | None:
        seen: set[str] = set()
        for variable in env or []:
            if variable.name in seen:
                raise ValueError(f"Duplicate value: engine.env names {variable.name} twice")
            seen.add(variable.name)
        return env


class Parallelism(ApiModel):
    """How many devices share one replica."""

    tensor: Literal[1] = Field(default=1, description="Tensor parallel size. Only 1 for now.")


class GpuPlacement(ApiModel):
    """Which GPUs. Present, even empty: each replica asks for GPUs and runs the GPU image."""

    product: str | None = Field(
        default=None,
        min_length=1,
        max_length=63,
        pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
        description="Value of the node label nvidia.com/gpu.product.",
    )
    resource_name: str = Field(
        default="nvidia.com/gpu",
        min_length=3,
        max_length=253,
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
        description="Extended resource to ask for (MIG slices and other vendors have their own).",
    )


class Placement(ApiModel):
    """Where replicas may run; core types, copied into the pods."""

    gpu: GpuPlacement | None = None
    node_selector: dict[str, Label] | None = Field(default=None, max_length=64)
    tolerations: list[Toleration] | None = Field(default=None, max_length=64)
    affinity: OpaqueObject | None = None
    topology_spread_constraints: list[TopologySpreadConstraint] | None = Field(default=None, max_length=16)
    priority_class_name: str | None = Field(default=None, max_length=253)
    runtime_class_name: str | None = Field(default=None, max_length=253)
    scheduler_name: str | None = Field(default=None, max_length=253)


class Rollout(ApiModel):
    """How a changed spec replaces the running revision."""

    drain_timeout_seconds: int = Field(
        default=DEFAULT_DRAIN_TIMEOUT_SECONDS,
        ge=0,
        le=86_400,
        description="How long running answers may finish before a stopping engine cuts them.",
    )
    progress_deadline_seconds: int = Field(
        default=DEFAULT_PROGRESS_DEADLINE_SECONDS,
        ge=30,
        le=86_400,
        description="After this long without a new ready replica the rollout counts as stalled.",
    )


class LLMDeploymentSpec(ApiModel):
    """The desired state of one model's fleet."""

    model: Model
    replicas: int | None = Field(default=None, ge=0, le=10_000, description="Number of replicas. Absent: 1.")
    engine: Engine = Field(default_factory=Engine)
    resources: ResourceRequirements | None = Field(
        default=None, description="CPU and memory of a replica. GPUs are asked for by placement.gpu."
    )
    parallelism: Parallelism = Field(default_factory=Parallelism)
    placement: Placement | None = None
    rollout: Rollout = Field(default_factory=Rollout)
    image: str | None = Field(
        default=None, min_length=1, max_length=1024, description="Engine image. Default: the operator's."
    )
    image_pull_secrets: list[LocalObjectReference] | None = Field(default=None, max_length=16)
    pod_template: OpaqueObject | None = Field(
        default=None,
        description="Strategic merge onto the rendered pod template; the engine's container is named `engine`.",
    )
    suspend: bool = Field(default=False, description="True: no pods, nothing is served, the object stays.")
    restarted_at: Rfc3339Time | None = Field(default=None, description="RFC 3339; a change rolls the pods.")

    @model_validator(mode="after")
    def _cross_field_rules(self) -> LLMDeploymentSpec:
        rules.check_spec(self.model_dump(mode="json", by_alias=True, exclude_none=True))
        return self

    @property
    def desired_replicas(self) -> int:
        """Replicas asked for: `replicas`, 1 where absent, 0 while suspended."""
        if self.suspend:
            return 0
        return 1 if self.replicas is None else self.replicas


class LLMDeployment(ApiModel):
    """A whole manifest, as a user writes it."""

    api_version: Literal["modelfleet.dev/v1alpha1"]
    kind: Literal["LLMDeployment"]
    metadata: OpaqueObject
    spec: LLMDeploymentSpec
    status: OpaqueObject | None = None

    @model_validator(mode="after")
    def _name_rule(self) -> Self:
        if not rules.name_is_valid(str(self.metadata.get("name", ""))):
            raise ValueError(rules.NAME_MESSAGE)
        return self

    @property
    def name(self) -> str:
        """`metadata.name`."""
        return str(self.metadata["name"])


def parse_manifest(manifest: Mapping[str, Any]) -> LLMDeployment:
    """The manifest as the API server would accept it; raises pydantic.ValidationError (a ValueError) otherwise."""
    return LLMDeployment.model_validate(dict(manifest))
