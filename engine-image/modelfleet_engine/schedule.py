"""What the scheduler is told and what it says of itself: frozen. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from modelfleet_engine.request import Admission
from modelfleet_engine.sequence import Sequence
from modelfleet_engine.step_plan import StepPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """What one step and the whole KV cache may hold.

    `itl_target_seconds`: while others decode, a step takes no more prompt tokens than fit into it by the learned step
    time; None: whole budgets.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    kv_blocks: int
    block_tokens: int
    prefix_caching: bool = True
    itl_target_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """A plan, whose rows it holds, and its size in the terms of the step-time model."""

    plan: StepPlan
    sequences: tuple[Sequence, ...]
    # Requests that are in a step for the first time (not those that resume after a preemption).
    admitted: tuple[Admission, ...]
    prefill_tokens: int
    kv_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStats:
    """Depths and cumulative counts at one moment.

    `queued_tokens` are those that waiting requests must compute, were nothing cached, without those of choices that
    wait for their call's prompt. `kv_blocks_cached` are free blocks whose content can be found again. `kv_waste_ratio`
    is the share of the held blocks' room that is beyond the tokens of their sequences. `prefix_queried_tokens` are
    those of admitted requests looked up in the prefix cache, `prefix_hit_tokens` those found. `recomputed_tokens` were
    computed again after a preemption.
    """

    running: int
    waiting: int
    running_tokens: int
    queued_tokens: int
    kv_blocks_used: int
    kv_blocks_total: int
    kv_blocks_cached: int
    kv_waste_ratio: float
    prefix_queried_tokens: int
    prefix_hit_tokens: int
    preemptions: int
    recomputed_tokens: int
    expired: int
    steps: int
