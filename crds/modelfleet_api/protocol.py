"""Protocol v1: what the parts say to each other. Typed, additive, versioned; JSON in camelCase.

Must not import anything but pydantic and this package's base: every part speaks it.
"""

from __future__ import annotations

from pydantic import Field

from modelfleet_api.base import WireModel

PROTOCOL_VERSION = 1

HEADER_DRAINING = "x-modelfleet-draining"
HEADER_REQUEST_ID = "x-request-id"
# Seconds that are left for the whole request; passed on as what is left of it.
HEADER_REQUEST_TIMEOUT = "x-request-timeout"
# "1": a stream ends with an SSE comment that carries its usage; the gateway strips and bills it.
HEADER_USAGE = "x-modelfleet-usage"
# The tenant's salt of the prefix cache.
HEADER_SALT = "x-modelfleet-salt"
# The gateway's chained text-block hashes of the prompt, comma-separated, first block first.
HEADER_PREFIX = "x-modelfleet-prefix"
# The key shared by gateways and engines of one namespace.
HEADER_KEY = "x-modelfleet-key"
# How the comment line of HEADER_USAGE begins; JSON of OpenAI's usage object follows.
USAGE_COMMENT_PREFIX = ": modelfleet-usage "


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
    """Counts since the start of the process; a smaller value than before means a restart.

    `requests` are finished sequences: each choice of a call counts.
    """

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


class KvEvent(WireModel):
    """One event of `GET /kv-events` (SSE, JSON data): which text-block hashes have their KV resident.

    The first event of a connection is a snapshot: `stored` is then everything. `sequence` grows by one with each event
    of the engine; a gap means a missed event: connect again.
    """

    version: int = PROTOCOL_VERSION
    sequence: int = Field(ge=0)
    snapshot: bool = False
    stored: tuple[str, ...] = ()
    evicted: tuple[str, ...] = ()
