"""`EngineConfig`: rendered by the operator into one immutable ConfigMap per revision, read by the engine.

Additive and versioned: a field is never renamed, defaults are omitted from the JSON, unknown fields are ignored,
so that an engine of an older revision and a newer operator keep understanding each other.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from modelfleet_api.base import WireModel

ENGINE_CONFIG_VERSION = 1

Dtype = Literal["auto", "bfloat16", "float16", "float32"]


class EngineConfig(WireModel):
    """Everything one engine process needs to know. Sizes in tokens, blocks, bytes or seconds as named."""

    version: int = Field(default=ENGINE_CONFIG_VERSION, ge=1)
    model_path: str
    # The name users put in `model`; the canonical id (`<name>.<namespace>`) is accepted besides.
    served_model_name: str
    canonical_id: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Dtype = "auto"
    # A backend of the kernels by name ("torch_cpu"); None = auto: the best that computes this model here.
    kernel_backend: str | None = None
    # None = auto: the smaller of the model's own maximum and what the KV cache holds.
    max_model_len: int | None = Field(default=None, ge=1)
    max_num_seqs: int = Field(default=32, ge=1, le=4096)
    max_num_batched_tokens: int = Field(default=512, ge=1)
    block_tokens: int = Field(default=16, ge=1)
    # None = auto: what is free under the cgroup's memory limit, else 2 GiB on CPU.
    kv_cache_bytes: int | None = Field(default=None, ge=1)
    prefix_caching: bool = True
    # Prompts are computed in chunks small enough that a step with decodes stays below it; None: whole budgets.
    itl_target_milliseconds: int | None = Field(default=None, ge=1)
    # Tokens of work (prompts and expected answers) that may wait; None = auto: 256 full steps.
    max_queued_tokens: int | None = Field(default=None, ge=1)
    # A file with the key of the gateways, read anew when it changes; absent or empty: everybody may ask.
    internal_key_path: str | None = None
    # OTLP over HTTP; None: no traces.
    otlp_endpoint: str | None = None
    tensor_parallel: int = Field(default=1, ge=1)
    port: int = Field(default=8000, ge=0, le=65535)
    drain_timeout_seconds: int = Field(default=300, ge=0)
    accept_after_sigterm_seconds: int = Field(default=5, ge=0)

    def to_json(self) -> str:
        """Compact JSON without defaults: the ConfigMap's payload, stable for equal configurations."""
        return self.model_dump_json(by_alias=True, exclude_defaults=True, exclude_none=True)
