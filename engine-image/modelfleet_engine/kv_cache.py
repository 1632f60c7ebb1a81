"""The paged KV cache: how many blocks fit, the longest sequence they hold, and their memory. Knows no sequence."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modelfleet_engine.errors import ModelError
from modelfleet_engine.model_config import ModelConfig

# Without a memory limit nobody says what this process may take.
DEFAULT_KV_CACHE_BYTES = 2 << 30
# Growth of the interpreter, HTTP buffers, tokenizer caches and the allocator's slack.
HOST_MARGIN_BYTES = 128 << 20
# The attention backends' workspace bound, gathered once more as a temporary.
ATTENTION_MARGIN_BYTES = 128 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRequest:
    """What the sizes of the cache depend on. Bytes, tokens and sequences as named; None is "auto"."""

    model: ModelConfig
    dtype: torch.dtype
    block_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int | None
    kv_cache_bytes: int | None
    memory_limit_bytes: int | None
    memory_used_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePlan:
    """The resolved sizes."""

    blocks: int
    block_bytes: int
    max_model_len: int


def plan_cache(request: CacheRequest) -> CachePlan:
    """How many blocks there will be and the longest sequence they allow.

    Raises:
        ModelError: not even one block fits, or `max_model_len` is above the model's or the cache's bound.
    """
    model, wanted = request.model, request.max_model_len
    if wanted is not None and wanted > model.max_position_embeddings:
        raise ModelError(f"maxModelLen {wanted} is above the model's maximum of {model.max_position_embeddings} tokens")
    longest = wanted or model.max_position_embeddings
    block_bytes = kv_block_bytes(model, block_tokens=request.block_tokens, dtype=request.dtype)
    available, origin = _available_bytes(request, longest=longest, block_bytes=block_bytes)
    blocks = available // block_bytes
    if blocks < 1:
        needed = f"one block of {request.block_tokens} tokens needs {block_bytes} bytes"
        raise ModelError(f"no KV cache fits: {needed}; {origin}")
    capacity = blocks * request.block_tokens
    if wanted is not None and wanted > capacity:
        held = f"the {capacity} tokens the KV cache holds ({blocks} blocks of {block_bytes} bytes)"
        raise ModelError(f"maxModelLen {wanted} is above {held}; {origin}")
    return CachePlan(blocks=blocks, block_bytes=block_bytes, max_model_len=min(longest, capacity))


def kv_block_bytes(model: ModelConfig, *, block_tokens: int, dtype: torch.dtype) -> int:
    """Bytes of one block over all layers, keys and values."""
    return model.layers * 2 * block_tokens * model.kv_heads * model.head_dim * dtype.itemsize


def _available_bytes(request: CacheRequest, *, longest: int, block_bytes: int) -> tuple[int, str]:
    """Bytes for the cache, and where the number comes from, for messages."""
    if request.kv_cache_bytes is not None:
        return request.kv_cache_bytes, f"kvCacheBytes is {request.kv_cache_bytes}"
    # More than every sequence at its longest would never be touched.
    useful_blocks = request.max_num_seqs * -(-longest // request.block_tokens)
    limit = request.memory_limit_bytes
    if limit is None:
        available, origin = DEFAULT_KV_CACHE_BYTES, f"the default without a memory limit is {DEFAULT_KV_CACHE_BYTES}"
    else:
        margin = activation_bytes(request, longest=longest)
        available = limit - request.memory_used_bytes - margin
        origin = f"memory limit {limit}, used {request.memory_used_bytes}, kept for activations {margin} bytes"
    return min(available, useful_blocks * block_bytes), origin


def activation_bytes(request: CacheRequest, *, longest: int) -> int:
    """An upper estimate of what the largest step holds at once beside weights and cache."""
    model, size = request.model, request.dtype.itemsize
    heads = (model.query_heads + 2 * model.kv_heads) * model.head_dim
    # Per token: residual, norm, projections (4 H), qkv twice (rotated), gate, up and their product.
    per_token = size * (4 * model.hidden_size + 2 * heads + 3 * model.intermediate_size)
    # A later prefill chunk's mask, one byte and one element per query and key.
    mask = request.max_num_batched_tokens * longest * (1 + size)
    # Logits in two dtypes, scaled, masked, weighted and noise.
    logits = request.max_num_seqs * model.vocab_size * 4 * 6
    one_sequence = 2 * 2 * model.kv_heads * model.head_dim * longest * size
    workspace = max(ATTENTION_MARGIN_BYTES, one_sequence)
    return request.max_num_batched_tokens * per_token + mask + logits + workspace + HOST_MARGIN_BYTES


def allocate_cache(model: ModelConfig, plan: CachePlan, *, block_tokens: int, dtype: torch.dtype) -> Sequence[Tensor]:
    """One [N, 2, Hkv, P, D] cache per layer in anonymous memory: zeros, and resident only once written."""
    shape = (model.layers, plan.blocks, 2, model.kv_heads, block_tokens, model.head_dim)
    memory = mmap.mmap(-1, plan.blocks * plan.block_bytes)
    cache = torch.frombuffer(memory, dtype=torch.uint8).view(dtype).view(shape)  # [layers, N, 2, Hkv, P, D]
    return cache.unbind(0)
