"""The profile run: the largest steps there will be, on a small cache, before the first request.

It warms the kernels, measures how far memory rises, and times steps for the first guess at the model's speed. A slow
model is profiled with fewer tokens, so that its start does not wait for it longer than a few small steps take; the
rest is extrapolated with the upper bounds of `step_memory`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from modelfleet_kernels import Kernels

from modelfleet_engine.kv_cache import allocate_cache
from modelfleet_engine.model_config import ModelConfig
from modelfleet_engine.model_runner import ModelRunner
from modelfleet_engine.models.decoder import DecoderModel
from modelfleet_engine.process_memory import MemoryGrowth, PeakMemory, give_back_free_memory
from modelfleet_engine.profile_steps import ProfileSizes, decode_step, prefill_step, worst_step
from modelfleet_engine.step_memory import step_bytes, token_bytes
from modelfleet_engine.step_plan import ProfiledStep, StepPlan

# The first steps: enough tokens for a speed, few enough for any model.
PROBE_TOKENS = 64
# A profiled step is made smaller when it would take longer: two of them and the probes stay well below two seconds.
STEP_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What the run saw. `step_bytes` is beside weights and cache; None: nobody counts memory here."""

    steps: tuple[ProfiledStep, ...]
    profiled_tokens: int
    step_bytes: int | None
    source: str

    def full_step_seconds(self, max_num_batched_tokens: int) -> float:
        """What a step of the whole token budget takes, in proportion to the largest prompt profiled."""
        largest = max(self.steps, key=lambda step: step.prefill_tokens)
        return largest.seconds * max(1.0, max_num_batched_tokens / max(1, largest.prefill_tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRequest:
    """What the run depends on. `longest` is the most tokens a sequence may have."""

    model: ModelConfig
    dtype: torch.dtype
    block_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
    longest: int


def profile_run(model: DecoderModel, kernels: Kernels, request: ProfileRequest) -> Profile:
    """Runs the steps; leaves nothing behind but warm kernels."""
    sizes = _probe_sizes(request)
    runner = _runner(model, kernels, request, blocks=sizes.blocks)
    warm = runner.run(prefill_step(sizes))
    sizes = sizes.with_tokens(_affordable_tokens(sizes.tokens, seconds=warm.busy_seconds, most=sizes.tokens))
    runner.run(decode_step(sizes, sequences=1))
    small = [prefill_step(sizes), decode_step(sizes, sequences=1), decode_step(sizes, sequences=request.max_num_seqs)]
    steps = [_timed(runner, plan) for plan in small]
    most = request.max_num_batched_tokens
    sizes = sizes.with_tokens(_affordable_tokens(sizes.tokens, seconds=steps[0].seconds, most=most))
    give_back_free_memory()
    memory = PeakMemory()
    # The peak of both: what the first leaves behind (primitives, arenas) counts as well as what the second needs.
    steps.append(_timed(runner, prefill_step(sizes)))
    runner.run(worst_step(sizes))
    growth = memory.growth()
    if growth is None:
        return Profile(steps=tuple(steps), profiled_tokens=sizes.tokens, step_bytes=None, source="estimate")
    return Profile(
        steps=tuple(steps),
        profiled_tokens=sizes.tokens,
        step_bytes=growth.growth_bytes + _unseen_bytes(request, sizes, growth),
        source=growth.source,
    )


def _unseen_bytes(request: ProfileRequest, sizes: ProfileSizes, growth: MemoryGrowth) -> int:
    """What a step of the whole budget may take beyond a smaller one that was profiled: at least up to the estimate."""
    unseen_tokens = request.max_num_batched_tokens - sizes.tokens
    if unseen_tokens == 0:
        return 0
    element_bytes = request.dtype.itemsize
    estimated = step_bytes(
        request.model,
        tokens=request.max_num_batched_tokens,
        sequences=request.max_num_seqs,
        element_bytes=element_bytes,
    )
    # With fewer tokens fewer rows draw as well, and what they hold is in the estimate alone.
    extrapolated = unseen_tokens * token_bytes(request.model, element_bytes=element_bytes)
    return max(extrapolated, estimated - growth.growth_bytes)


def _probe_sizes(request: ProfileRequest) -> ProfileSizes:
    row_tokens = min(request.max_num_batched_tokens, request.longest)
    return ProfileSizes(
        tokens=min(PROBE_TOKENS, row_tokens),
        sequences=request.max_num_seqs,
        longest=request.longest,
        vocab_size=request.model.vocab_size,
        blocks=-(-(row_tokens + 1) // request.block_tokens),
    )


def _runner(model: DecoderModel, kernels: Kernels, request: ProfileRequest, *, blocks: int) -> ModelRunner:
    """A runner of its own on a cache of `blocks` blocks, all resident: they are not part of what a step takes."""
    cache = allocate_cache(request.model, blocks=blocks, block_tokens=request.block_tokens, dtype=request.dtype)
    return ModelRunner(
        model, config=request.model, kernels=kernels, kv_cache=cache.zero_(), max_num_seqs=request.max_num_seqs
    )


def _affordable_tokens(tokens: int, *, seconds: float, most: int) -> int:
    """As many tokens as take `STEP_SECONDS` at the speed of `tokens` in `seconds`, at least 1, at most `most`."""
    return max(1, min(most, int(tokens * STEP_SECONDS / max(seconds, 1e-6))))


def _timed(runner: ModelRunner, plan: StepPlan) -> ProfiledStep:
    seconds = runner.run(plan).busy_seconds
    return ProfiledStep(
        sequences=len(plan.sequences),
        prefill_tokens=sum(row.computed_tokens for row in plan.sequences if row.start_position == 0),
        kv_tokens=sum(row.start_position + row.computed_tokens for row in plan.sequences),
        seconds=seconds,
    )
