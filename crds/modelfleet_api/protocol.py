"""Protocol v1: what the parts say to each other. Typed, additive, versioned; JSON in camelCase.

Must not import anything but pydantic and this package's base: every part speaks it.
"""

from __future__ import annotations

from pydantic import Field

from modelfleet_api.base import WireModel

PROTOCOL_VERSION = 1

HEADER_DRAINING = "x-modelfleet-draining"
HEADER_REQUEST_ID = "x-request-id"


class HistogramSnapshot(WireModel):
    """Cumulative since the start, not per bucket: `counts[i]` values were in (bounds[i-1], bounds[i]].

    There is one count more than bounds: values above all of them. Two snapshots subtract to a window.
    """

    upper_bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float


class StepTime(WireModel):
    """The learned time of one forward pass: t = base + b*sequences + c*prefill_tokens + d*kv_tokens, in seconds."""

    base_seconds: float = Field(ge=0)
    per_sequence_seconds: float = Field(ge=0)
    per_prefill_token_seconds: float = Field(ge=0)
    per_kv_token_seconds: float = Field(ge=0)
    observed_steps: int = Field(ge=0)


class LoadCounters(WireModel):
    """Counts since the start of the process; a smaller value than before means a restart."""

    requests: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    computed_tokens: int = 0
    generated_tokens: int = 0
    busy_seconds: float = 0.0
    preemptions: int = 0
    recomputed_tokens: int = 0
    cut_requests: int = 0


class Load(WireModel):
    """The answer of `GET /load`: what one engine is doing and what it has learned about itself."""

    version: int = PROTOCOL_VERSION
    model: str
    phase: str
    ready: bool
    draining: bool
    running: int = 0
    waiting: int = 0
    running_tokens: int = 0
    queued_tokens: int = 0
    max_num_seqs: int = 0
    max_model_len: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    block_tokens: int = 0
    step_time: StepTime | None = None
    counters: LoadCounters = Field(default_factory=LoadCounters)
    time_to_first_token_seconds: HistogramSnapshot
    inter_token_latency_seconds: HistogramSnapshot
    output_tokens: HistogramSnapshot
    # Seconds each phase from process start to readiness took, in order.
    start_phases: dict[str, float] = Field(default_factory=dict)
