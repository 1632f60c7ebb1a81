"""A step's rows as the library reads them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modelfleet_kernels.checks import ContractError
from modelfleet_kernels.cpu.library import BatchStruct
from modelfleet_kernels.cpu.limits import require, require_indices
from modelfleet_kernels.types import Needs, PagedBatch, PreparedBatch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CpuBatch(PreparedBatch):
    """`PreparedBatch` of the cpu backend. `struct` points into `memory`."""

    blocks: int  # the cache has at least so many
    struct: BatchStruct
    memory: tuple[Tensor, ...]


def prepare(batch: PagedBatch, kv_cache: Tensor, query_heads: int, windows: frozenset[int | None]) -> CpuBatch:
    """See `types.Backend.prepare`."""
    blocks, _, kv_heads, block_tokens, head_dim = kv_cache.shape
    require(Needs(dtype=kv_cache.dtype, head_dim=head_dim, block_tokens=block_tokens))
    require_indices("slots", batch.slot_mapping, count=blocks * block_tokens)
    require_indices("blocks", batch.block_tables, count=blocks)
    rows, tokens = len(batch.query_lengths), batch.slot_mapping.shape[0]
    starts = torch.from_numpy(np.cumsum([0, *batch.query_lengths], dtype=np.int64))  # [S + 1]
    lengths = torch.tensor(batch.sequence_lengths, dtype=torch.int64)  # [S]
    tables, slots = batch.block_tables.contiguous(), batch.slot_mapping.contiguous()
    return CpuBatch(
        batch=batch,
        tokens=tokens,
        query_heads=query_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        block_tokens=block_tokens,
        windows=windows,
        blocks=blocks,
        struct=BatchStruct(
            tokens=tokens,
            rows=rows,
            table_width=tables.shape[1],
            starts=starts.data_ptr(),
            lengths=lengths.data_ptr(),
            tables=tables.data_ptr(),
            slots=slots.data_ptr(),
        ),
        memory=(starts, lengths, tables, slots),
    )


def own(prepared: PreparedBatch) -> CpuBatch:
    """Raises TypeError for another backend's."""
    if not isinstance(prepared, CpuBatch):
        raise TypeError(f"the batch was prepared by another backend: {type(prepared).__name__}")
    return prepared


def memory_of(kv_cache: Tensor, batch: CpuBatch) -> int:
    """A layer's cache as the library takes it: the batch's slots and blocks were found to lie in one of that size."""
    if kv_cache.dtype != torch.bfloat16 or kv_cache.shape[0] < batch.blocks:
        given = f"{kv_cache.shape[0]} of {kv_cache.dtype}"
        raise ContractError(f"the batch was prepared for {batch.blocks} blocks of bfloat16, got {given}")
    return kv_cache.data_ptr()
