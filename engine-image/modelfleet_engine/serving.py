"""The state of one serving process, from "starting" to "drained": what the HTTP side may ask and use."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from modelfleet_api.engine_config import EngineConfig
from modelfleet_api.protocol import Load, LoadCounters

from modelfleet_engine.bridge import Bridge
from modelfleet_engine.drain import Drain
from modelfleet_engine.internal_key import InternalKey
from modelfleet_engine.load import RequestCounts
from modelfleet_engine.step_plan import Device, ProfiledStep
from modelfleet_engine.step_time import predict_seconds
from modelfleet_engine.tokenizer import ModelTokenizer
from modelfleet_engine.tracing import Tracer

# A step that takes longer than this, and than so many full steps of this model, makes /health fail, so that the
# kubelet restarts the pod. A large model on a small CPU may take minutes for one step and be well.
STUCK_STEP_SECONDS = 30.0
STUCK_FULL_STEPS = 20

PHASE_READY = "ready"

# A request's body may have so many bytes for each token of the context: four times what English takes, escaped as
# \uXXXX throughout. At least room for a batch of prompts; at most what is still parsed in about a third of a second.
BODY_BYTES_PER_TOKEN = 64
MIN_BODY_BYTES = 4 * 1024 * 1024
MAX_BODY_BYTES = 32 * 1024 * 1024


class LoadedDevice(Protocol):
    """What serving needs of `device.LoadedModel`; the tests' fake gives the same."""

    @property
    def device(self) -> Device: ...
    @property
    def kv_blocks(self) -> int: ...
    @property
    def block_tokens(self) -> int: ...
    @property
    def max_model_len(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def backend(self) -> str: ...
    @property
    def phases(self) -> Mapping[str, float]: ...
    @property
    def profiled_steps(self) -> tuple[ProfiledStep, ...]: ...
    @property
    def full_step_seconds(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyModel:
    """A loaded model that answers. `max_model_len` is what one request may use, prompt and answer."""

    bridge: Bridge
    tokenizer: ModelTokenizer
    max_model_len: int
    vocab_size: int
    block_tokens: int
    dtype: str
    backend: str
    # What the profile says of a step that uses the whole token budget; the learned step time replaces it.
    first_full_step_seconds: float = 0.0

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The end tokens the model can draw: files may name ids beyond its vocabulary."""
        return frozenset(token_id for token_id in self.tokenizer.eos_token_ids if 0 <= token_id < self.vocab_size)


@dataclass(slots=True)
class Serving:
    """Shared by all handlers; touched on the event loop's thread only."""

    config: EngineConfig
    drain: Drain
    # Off the event loop; two threads, so that one huge prompt does not hold up every other.
    tokenizer_pool: ThreadPoolExecutor
    counts: RequestCounts = field(default_factory=RequestCounts)
    internal_key: InternalKey = field(default_factory=lambda: InternalKey(None))
    tracer: Tracer | None = None
    phase: str = "starting"
    start_phases: dict[str, float] = field(default_factory=dict)
    model: ReadyModel | None = None
    created_unix_seconds: int = field(default_factory=lambda: int(time.time()))

    @property
    def is_ready(self) -> bool:
        """Loaded, warmed up and not draining."""
        return self.model is not None and not self.drain.is_draining

    @property
    def phase_now(self) -> str:
        """The phase in one word, for /ready and /load."""
        return "draining" if self.drain.is_draining else self.phase

    @property
    def model_names(self) -> tuple[str, ...]:
        """Every name this model answers to; the served name first."""
        canonical = self.config.canonical_id
        names = (self.config.served_model_name,)
        return names if canonical is None or canonical in names else (*names, canonical)

    @property
    def max_body_bytes(self) -> int:
        """The longest body that is read: derived from the context, bounded both ways."""
        context_tokens = 0 if self.model is None else self.model.max_model_len
        return min(MAX_BODY_BYTES, max(MIN_BODY_BYTES, BODY_BYTES_PER_TOKEN * context_tokens))

    def unhealthy_reason(self) -> str | None:
        """Why the process should be restarted; None while it is well (loading is well)."""
        if self.model is None:
            return None
        if not self.model.bridge.is_alive():
            return "the engine's thread has ended"
        age = self.model.bridge.step_age_seconds()
        limit = max(STUCK_STEP_SECONDS, STUCK_FULL_STEPS * self.full_step_seconds())
        if age > limit:
            return f"a step has been running for {age:.0f} s, the limit is {limit:.0f} s"
        return None

    def full_step_seconds(self) -> float:
        """The predicted time of a step that uses the whole budget: learned, at first from the profile; 0 unloaded."""
        if self.model is None:
            return 0.0
        stats = self.model.bridge.stats
        learned = stats.step_time
        if learned is None:
            return self.model.first_full_step_seconds
        kv_tokens = stats.scheduler.kv_blocks_total * self.model.block_tokens
        return predict_seconds(
            learned,
            sequences=self.config.max_num_seqs,
            prefill_tokens=self.config.max_num_batched_tokens,
            kv_tokens=kv_tokens,
        )

    def load(self) -> Load:
        """The report of `GET /load`."""
        counts = self.counts
        report = Load(
            model=self.config.served_model_name,
            phase=self.phase_now,
            ready=self.is_ready,
            draining=self.drain.is_draining,
            max_num_seqs=self.config.max_num_seqs,
            time_to_first_token_seconds=counts.time_to_first_token.snapshot(),
            inter_token_latency_seconds=counts.inter_token_latency.snapshot(),
            output_tokens=counts.output_lengths.snapshot(),
            start_phases=self.start_phases,
        )
        if self.model is None:
            return report
        return report.model_copy(update=self._model_load(self.model))

    def _model_load(self, model: ReadyModel) -> dict[str, object]:
        """What a loaded model adds to the report."""
        counts = self.counts
        stats = model.bridge.stats
        scheduler = stats.scheduler
        return {
            "running": scheduler.running,
            "waiting": model.bridge.waiting,
            "running_tokens": scheduler.running_tokens,
            # The engine has not seen yet what came during its present step.
            "queued_tokens": max(scheduler.queued_tokens, model.bridge.waiting_work.prompt_tokens),
            "max_model_len": model.max_model_len,
            "kv_blocks_used": scheduler.kv_blocks_used,
            "kv_blocks_total": scheduler.kv_blocks_total,
            "block_tokens": model.block_tokens,
            "step_time": stats.step_time,
            "counters": LoadCounters(
                requests=counts.total_finished,
                steps=scheduler.steps,
                prompt_tokens=counts.prompt_tokens,
                cached_tokens=scheduler.prefix_hit_tokens,
                computed_tokens=stats.computed_tokens,
                generated_tokens=counts.generated_tokens,
                busy_seconds=stats.busy_seconds,
                preemptions=scheduler.preemptions,
                recomputed_tokens=scheduler.recomputed_tokens,
                cut_requests=counts.cut,
            ),
        }
