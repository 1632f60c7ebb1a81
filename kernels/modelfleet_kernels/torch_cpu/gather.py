"""What one step's layers share on CPU: where tokens are written, what is gathered, and which rows go together.

A cache [N, 2, Hkv, P, D] is seen as rows: [N * 2 * Hkv, P * D] for reading whole blocks of one head, and
[N * 2 * Hkv * P, D] for writing single tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modelfleet_kernels.types import PagedBatch, PreparedBatch

# Gathered keys and values of one group, in elements: beyond this a group is split, so that a batch of long
# sequences needs a bounded workspace (64 MiB in bfloat16).
MAX_GATHERED_ELEMENTS = 32 * 1024 * 1024


def has_mkl() -> bool:
    """Whether this torch build multiplies matrices through MKL."""
    return bool(torch._C.has_mkl)


def attention_dtype(cache_dtype: torch.dtype) -> torch.dtype:
    """What gathered keys and values are attended in.

    Torch's fused attention multiplies bfloat16 through MKL. Builds without it (Debian's) fall back to scalar loops:
    39 ms instead of 2.2 ms in float32 for 256 tokens of 9 heads, 5.3 instead of 0.7 ms for 32 one-token rows.
    """
    return cache_dtype if has_mkl() else torch.float32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowGroup:
    """Rows attended in one call: either any number of one-token rows, or one row of several tokens."""

    tokens: slice | Tensor  # which of the step's tokens; a tensor [B] where they are not adjacent
    rows: int  # B
    query_length: int  # Tq: 1, or that of the only row
    gather_rows: Tensor  # [2 * B * Hkv * M'] int64
    kv_length: int  # L: keys looked at, the longest of the group
    mask: Tensor | None  # [B, 1, 1, L] or [Tq, L], added to the scores; None: all visible, or causal from the start


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GatherBatch(PreparedBatch):
    """`PreparedBatch` of the torch_cpu backend."""

    write_rows: Tensor  # [T * 2 * Hkv] int64
    cos: Tensor  # [T, 1, D]
    signed_sin: Tensor  # [T, 1, D]: the first half negated, so that rotation is x * cos + swap(x) * signed_sin
    groups: Sequence[RowGroup]


def prepare(batch: PagedBatch, kv_cache: Tensor, query_heads: int) -> GatherBatch:
    """Derives everything above from the batch."""
    _, _, kv_heads, block_tokens, head_dim = kv_cache.shape
    head_rows = torch.arange(2 * kv_heads)  # [2 * Hkv]
    blocks = batch.slot_mapping // block_tokens  # [T]
    offsets = batch.slot_mapping % block_tokens  # [T]
    write_rows = (blocks[:, None] * (2 * kv_heads) + head_rows) * block_tokens + offsets[:, None]  # [T, 2 * Hkv]
    half = head_dim // 2
    sin = batch.rope_sin
    signed_sin = torch.cat((-sin[:, :half], sin[:, half:]), dim=-1)  # [T, D]
    return GatherBatch(
        batch=batch,
        query_heads=query_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        block_tokens=block_tokens,
        write_rows=write_rows.view(-1),
        cos=batch.rope_cos[:, None],
        signed_sin=signed_sin[:, None],
        groups=_group_rows(batch, kv_cache),
    )


def _group_rows(batch: PagedBatch, kv_cache: Tensor) -> list[RowGroup]:
    first_tokens: list[int] = []
    token = 0
    for length in batch.query_lengths:
        first_tokens.append(token)
        token += length
    singles = [row for row, length in enumerate(batch.query_lengths) if length == 1]
    groups = [
        _single_token_group(batch, kv_cache, members, first_tokens)
        for members in _similar_lengths(singles, batch.sequence_lengths, kv_cache)
    ]
    for row, length in enumerate(batch.query_lengths):
        if length > 1:
            groups.append(_many_token_group(batch, kv_cache, row, first_tokens[row]))
    return groups


def _similar_lengths(rows: list[int], lengths: Sequence[int], kv_cache: Tensor) -> list[list[int]]:
    """Splits rows so that padding to a group's longest at most doubles the work, within the workspace."""
    _, _, kv_heads, block_tokens, head_dim = kv_cache.shape
    groups: list[list[int]] = []
    longest_blocks = 0
    for row in sorted(rows, key=lambda member: (-lengths[member], member)):
        blocks = -(-lengths[row] // block_tokens)
        row_elements = 2 * kv_heads * longest_blocks * block_tokens * head_dim
        fits = groups and 2 * blocks >= longest_blocks
        if fits and (len(groups[-1]) + 1) * row_elements <= MAX_GATHERED_ELEMENTS:
            groups[-1].append(row)
        else:
            groups.append([row])
            longest_blocks = blocks
    return [sorted(group) for group in groups]


def _single_token_group(batch: PagedBatch, kv_cache: Tensor, members: list[int], first_tokens: list[int]) -> RowGroup:
    tokens = [first_tokens[row] for row in members]
    lengths = [batch.sequence_lengths[row] for row in members]
    is_adjacent = tokens[-1] - tokens[0] == len(tokens) - 1
    mask: Tensor | None = None
    if min(lengths) != max(lengths):
        hidden = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]  # [B, L]
        mask = torch.zeros(hidden.shape, dtype=attention_dtype(kv_cache.dtype)).masked_fill_(hidden, float("-inf"))[
            :, None, None
        ]
    return RowGroup(
        tokens=slice(tokens[0], tokens[-1] + 1) if is_adjacent else torch.tensor(tokens),
        rows=len(members),
        query_length=1,
        gather_rows=_gather_rows(batch.block_tables[members], max(lengths), kv_cache),
        kv_length=max(lengths),
        mask=mask,
    )


def _many_token_group(batch: PagedBatch, kv_cache: Tensor, row: int, first_token: int) -> RowGroup:
    query_length, total = batch.query_lengths[row], batch.sequence_lengths[row]
    mask: Tensor | None = None
    if total > query_length:
        positions = torch.arange(total)  # [L]
        hidden = positions[None] > positions[total - query_length :, None]  # [Tq, L]
        mask = torch.zeros(hidden.shape, dtype=attention_dtype(kv_cache.dtype)).masked_fill_(hidden, float("-inf"))
    return RowGroup(
        tokens=slice(first_token, first_token + query_length),
        rows=1,
        query_length=query_length,
        gather_rows=_gather_rows(batch.block_tables[row : row + 1], total, kv_cache),
        kv_length=total,
        mask=mask,
    )


def _gather_rows(tables: Tensor, kv_length: int, kv_cache: Tensor) -> Tensor:
    """tables [B, M] -> the rows of [N * 2 * Hkv, P * D] in the order [2, B, Hkv, M'], flat."""
    _, _, kv_heads, block_tokens, _ = kv_cache.shape
    used = tables[:, : -(-kv_length // block_tokens)]  # [B, M']
    head_rows = torch.arange(2 * kv_heads).view(2, 1, kv_heads, 1)
    return (used[None, :, None] * (2 * kv_heads) + head_rows).view(-1)
