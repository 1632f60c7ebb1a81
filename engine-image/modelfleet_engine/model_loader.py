"""From an `EngineConfig` to a warm `ModelRunner`: config, kernels, weights, profile, KV cache, each phase timed.

Decides dtype, device and sizes; computes nothing itself.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from modelfleet_api.engine_config import EngineConfig
from modelfleet_kernels import BackendUnavailableError, Kernels, Needs, cpu_computes_bfloat16, select

from modelfleet_engine import machine
from modelfleet_engine.errors import ModelError
from modelfleet_engine.kv_cache import (
    CachePlan,
    CacheRequest,
    allocate_cache,
    can_hold_a_step,
    kept_bytes,
    plan_cache,
)
from modelfleet_engine.model_config import ModelConfig, read_model_config
from modelfleet_engine.model_runner import ModelRunner
from modelfleet_engine.models.decoder import DecoderModel
from modelfleet_engine.models.registry import build_model
from modelfleet_engine.process_memory import give_back_free_memory, unmap_unused_library_pages
from modelfleet_engine.profile_run import Profile, ProfileRequest, profile_run
from modelfleet_engine.start_phases import StartPhases
from modelfleet_engine.weights import open_weights

_log = logging.getLogger(__name__)
_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRunner:
    """A warm runner and the sizes it was built with."""

    runner: ModelRunner
    model: ModelConfig
    cache: CachePlan
    profile: Profile
    dtype: torch.dtype
    backend: str
    phases: StartPhases


def load_runner(config: EngineConfig) -> LoadedRunner:
    """Reads, packs and profiles the model.

    Raises:
        ModelError: the model or the configuration cannot be served.
    """
    phases = StartPhases()
    with phases.phase("read_config"):
        device = _resolve_device(config)
        # Who sets OMP_NUM_THREADS means it; torch has read it.
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(machine.usable_cores())
        model_config = read_model_config(Path(config.model_path))
        dtype = resolve_dtype(config.dtype, checkpoint=model_config.checkpoint_dtype)
        needs = _needs(model_config, dtype=dtype, block_tokens=config.block_tokens)
        try:
            kernels = select(device, config.kernel_backend, needs=needs)
        except BackendUnavailableError as error:
            raise ModelError(str(error)) from error
    model = _load_weights(config, model_config, dtype=dtype, kernels=kernels, phases=phases)
    request = _cache_request(config, model_config, kernels, dtype=dtype)
    with phases.phase("profile"):
        profile = _profile(model, kernels, request)
    with phases.phase("allocate_kv_cache"):
        plan = _plan_cache(request, profile)
        kv_cache = allocate_cache(model_config, blocks=plan.blocks, block_tokens=config.block_tokens, dtype=dtype)
    runner = ModelRunner(
        model, config=model_config, kernels=kernels, kv_cache=kv_cache, max_num_seqs=config.max_num_seqs
    )
    return LoadedRunner(
        runner=runner,
        model=model_config,
        cache=plan,
        profile=profile,
        dtype=dtype,
        backend=kernels.backend_name,
        phases=phases,
    )


def resolve_dtype(requested: str, *, checkpoint: str) -> torch.dtype:
    """The dtype on CPU. `auto` is the checkpoint's, with two exceptions, both logged.

    A float16 checkpoint is computed in bfloat16: CPUs multiply float16 at a fraction of its speed, and bfloat16
    never overflows where float16 did not. Where oneDNN cannot compute bfloat16 on this CPU, float32 is used.
    """
    if requested == "float16":
        raise ModelError("dtype float16 is not supported on cpu; supported: bfloat16, float32")
    if requested != "auto":
        return torch.bfloat16 if requested == "bfloat16" else torch.float32
    if checkpoint == "float32":
        return torch.float32
    if checkpoint not in ("bfloat16", "float16"):
        raise ModelError(f"checkpoint dtype {checkpoint!r} is not supported; supported: bfloat16, float16, float32")
    if not cpu_computes_bfloat16():
        _log.warning("this CPU has no bfloat16 instructions: the %s checkpoint is computed in float32", checkpoint)
        return torch.float32
    if checkpoint == "float16":
        _log.warning("the float16 checkpoint is computed in bfloat16 on cpu; set dtype: float32 for full precision")
    return torch.bfloat16


def _needs(model: ModelConfig, *, dtype: torch.dtype, block_tokens: int) -> Needs:
    return Needs(
        dtype=dtype,
        head_dim=model.head_dim,
        block_tokens=block_tokens,
        widths=(model.hidden_size, model.query_heads * model.head_dim),
        gated_width=model.intermediate_size,
    )


def _resolve_device(config: EngineConfig) -> str:
    if config.tensor_parallel != 1:
        raise ModelError(f"tensor parallelism {config.tensor_parallel} is not supported by this engine; supported: 1")
    if config.device == "cuda":
        raise ModelError("device cuda is not supported by this engine; supported: cpu")
    return "cpu"


def _load_weights(
    config: EngineConfig, model_config: ModelConfig, *, dtype: torch.dtype, kernels: Kernels, phases: StartPhases
) -> DecoderModel:
    # Not what the cache will hold: a model must answer the same however much memory there is.
    longest = config.max_model_len or model_config.max_position_embeddings
    with torch.inference_mode(), ExitStack() as stack:
        with phases.phase("map_weights"):
            weights = stack.enter_context(open_weights(Path(config.model_path), dtype=dtype))
        with phases.phase("pack_weights"):
            model = build_model(model_config, weights, kernels, max_model_len=longest)
    give_back_free_memory()
    return model


def _cache_request(
    config: EngineConfig, model_config: ModelConfig, kernels: Kernels, *, dtype: torch.dtype
) -> CacheRequest:
    return CacheRequest(
        model=model_config,
        dtype=dtype,
        block_tokens=config.block_tokens,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=config.max_model_len,
        kv_cache_bytes=config.kv_cache_bytes,
        memory_limit_bytes=machine.memory_limit_bytes(),
        memory_used_bytes=machine.memory_used_bytes(),
        attention_copies_context=kernels.attention_copies_context,
    )


def _profile(model: DecoderModel, kernels: Kernels, request: CacheRequest) -> Profile:
    if request.kv_cache_bytes is None and not can_hold_a_step(request):
        # Raises: a step that does not fit would end in out-of-memory instead of a message.
        plan_cache(request)
    return profile_run(
        model,
        kernels,
        ProfileRequest(
            model=request.model,
            dtype=request.dtype,
            block_tokens=request.block_tokens,
            max_num_seqs=request.max_num_seqs,
            max_num_batched_tokens=request.max_num_batched_tokens,
            longest=request.longest,
        ),
    )


def _plan_cache(request: CacheRequest, profile: Profile) -> CachePlan:
    """The plan with what is in use after the profile run and what the run has measured; says both in the log."""
    give_back_free_memory()
    unmap_unused_library_pages()
    measured = dataclasses.replace(
        request, measured_step_bytes=profile.step_bytes, memory_used_bytes=machine.memory_used_bytes()
    )
    plan = plan_cache(measured)
    kept = kept_bytes(measured, longest=plan.max_model_len)
    limit, needed = request.memory_limit_bytes, measured.memory_used_bytes + kept
    if limit is not None and needed + plan.blocks * plan.block_bytes > limit:
        # Only kvCacheBytes can ask for it; who sets it means it.
        _log.warning(
            "kvCacheBytes %d leaves %d bytes too few under the memory limit of %d",
            plan.blocks * plan.block_bytes,
            needed + plan.blocks * plan.block_bytes - limit,
            limit,
        )
    _log.info(
        "KV cache: %d blocks of %d tokens, %.0f MiB; in use %.0f MiB, kept for steps (%s) and the host %.0f MiB, "
        "memory limit %s; profiled %d tokens a step",
        plan.blocks,
        request.block_tokens,
        plan.blocks * plan.block_bytes / _MIB,
        measured.memory_used_bytes / _MIB,
        profile.source,
        kept / _MIB,
        "none" if request.memory_limit_bytes is None else f"{request.memory_limit_bytes / _MIB:.0f} MiB",
        profile.profiled_tokens,
    )
    return plan
