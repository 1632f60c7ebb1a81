"""The paged KV cache: how many blocks fit, the longest sequence they hold, their memory and copies between them.

Knows no sequence.
"""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modelfleet_engine.errors import ModelError
from modelfleet_engine.model_config import ModelConfig
from modelfleet_engine.step_memory import attention_bytes, step_bytes
from modelfleet_engine.step_plan import BlockCopy

# Without a memory limit nobody says what this process may take.
DEFAULT_KV_CACHE_BYTES = 2 << 30
# Growth of the interpreter, HTTP buffers, tokenizer caches and the allocator's slack.
HOST_MARGIN_BYTES = 128 << 20
# Blocks copied in one call: bounds the copy in between.
COPIED_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRequest:
    """What the sizes of the cache depend on. Bytes, tokens and sequences as named; None is "auto".

    `measured_step_bytes` is what the largest step was seen to take beside weights and cache; None: estimated.
    `attention_copies_context`: attention takes memory that grows with the context, which no profile reaches.
    """

    model: ModelConfig
    dtype: torch.dtype
    block_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int | None
    kv_cache_bytes: int | None
    memory_limit_bytes: int | None
    memory_used_bytes: int
    measured_step_bytes: int | None = None
    attention_copies_context: bool = True

    @property
    def longest(self) -> int:
        """The most tokens a sequence may have before the cache's own bound."""
        maximum = self.model.max_position_embeddings
        return maximum if self.max_model_len is None else min(self.max_model_len, maximum)


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
    block_bytes = kv_block_bytes(model, block_tokens=request.block_tokens, dtype=request.dtype)
    blocks, origin = _affordable_blocks(request, block_bytes=block_bytes)
    if blocks < 1:
        needed = f"one block of {request.block_tokens} tokens needs {block_bytes} bytes"
        raise ModelError(f"no KV cache fits: {needed}; {origin}")
    capacity = blocks * request.block_tokens
    if wanted is not None and wanted > capacity:
        held = f"the {capacity} tokens the KV cache holds ({blocks} blocks of {block_bytes} bytes)"
        raise ModelError(f"maxModelLen {wanted} is above {held}; {origin}")
    return CachePlan(blocks=blocks, block_bytes=block_bytes, max_model_len=_longest_in(request, blocks=blocks))


def kv_block_bytes(model: ModelConfig, *, block_tokens: int, dtype: torch.dtype) -> int:
    """Bytes of one block over all layers, keys and values."""
    return model.layers * 2 * block_tokens * model.kv_heads * model.head_dim * dtype.itemsize


def _affordable_blocks(request: CacheRequest, *, block_bytes: int) -> tuple[int, str]:
    """How many blocks there may be, and what bounds them, for messages."""
    if request.kv_cache_bytes is not None:
        return request.kv_cache_bytes // block_bytes, f"kvCacheBytes is {request.kv_cache_bytes}"
    # More than every sequence at its longest holds nothing that runs.
    useful = request.max_num_seqs * -(-request.longest // request.block_tokens)
    limit = request.memory_limit_bytes
    if limit is None:
        origin = f"the default without a memory limit is {DEFAULT_KV_CACHE_BYTES}"
        return min(useful, DEFAULT_KV_CACHE_BYTES // block_bytes), origin
    blocks = _fitting_blocks(request, limit=limit, most=useful, block_bytes=block_bytes)
    kept = kept_bytes(request, longest=_longest_in(request, blocks=max(1, blocks)))
    used = request.memory_used_bytes
    return blocks, f"memory limit {limit}, used {used}, kept for steps and the host {kept} bytes"


def _fitting_blocks(request: CacheRequest, *, limit: int, most: int, block_bytes: int) -> int:
    """The most blocks that fit beside what must stay free, which grows with the longest sequence they can hold."""

    def needed_bytes(blocks: int) -> int:
        return blocks * block_bytes + kept_bytes(request, longest=_longest_in(request, blocks=blocks))

    fitting = bisect_right(range(most + 1), limit - request.memory_used_bytes, key=needed_bytes) - 1
    return max(0, fitting)


def _longest_in(request: CacheRequest, *, blocks: int) -> int:
    """The most tokens a sequence can have in a cache of `blocks` blocks."""
    return min(request.longest, blocks * request.block_tokens)


def kept_bytes(request: CacheRequest, *, longest: int) -> int:
    """What must stay free beside weights and cache: the largest step, attention over `longest` tokens, the host."""
    step = request.measured_step_bytes
    if step is None:
        step = _estimated_step_bytes(request)
    if not request.attention_copies_context:
        return step + HOST_MARGIN_BYTES
    attention = attention_bytes(
        request.model,
        tokens=request.max_num_batched_tokens,
        longest=longest,
        element_bytes=request.dtype.itemsize,
    )
    return step + attention + HOST_MARGIN_BYTES


def can_hold_a_step(request: CacheRequest) -> bool:
    """Whether the estimate of one step, without any margin, fits into what the limit leaves."""
    limit = request.memory_limit_bytes
    return limit is None or request.memory_used_bytes + _estimated_step_bytes(request) <= limit


def _estimated_step_bytes(request: CacheRequest) -> int:
    return step_bytes(
        request.model,
        tokens=request.max_num_batched_tokens,
        sequences=request.max_num_seqs,
        element_bytes=request.dtype.itemsize,
    )


def allocate_cache(model: ModelConfig, *, blocks: int, block_tokens: int, dtype: torch.dtype) -> Tensor:
    """The cache [layers, N, 2, Hkv, P, D] in anonymous memory: zeros, and resident only once written."""
    shape = (model.layers, blocks, 2, model.kv_heads, block_tokens, model.head_dim)
    memory = mmap.mmap(-1, blocks * kv_block_bytes(model, block_tokens=block_tokens, dtype=dtype))
    return torch.frombuffer(memory, dtype=torch.uint8).view(dtype).view(shape)


def copy_blocks(cache: Tensor, copies: Sequence[BlockCopy]) -> None:
    """Does `copies` as if one after the other, in every layer of cache [layers, N, 2, Hkv, P, D], in few calls."""
    for batch in _independent(copies):
        sources = torch.tensor([copy.source for copy in batch])  # [C]
        destinations = torch.tensor([copy.destination for copy in batch])  # [C]
        cache.index_copy_(1, destinations, cache.index_select(1, sources))


def _independent(copies: Sequence[BlockCopy]) -> list[list[BlockCopy]]:
    """Cuts the copies where one touches a block that one before it wrote: a batch reads everything, then writes."""
    batches: list[list[BlockCopy]] = []
    written: set[int] = set()
    for copy in copies:
        is_free = not written & {copy.source, copy.destination}
        if not batches or not is_free or len(batches[-1]) == COPIED_AT_ONCE:
            batches.append([])
            written = set()
        batches[-1].append(copy)
        written.add(copy.destination)
    return batches
