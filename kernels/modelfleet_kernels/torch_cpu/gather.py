"""What one step's layers share on CPU: where tokens are written, what is gathered, and which rows go together.

A cache [N, 2, Hkv, P, D] is seen as rows: [N * 2 * Hkv, P * D] for reading whole blocks of one head, and
[N * 2 * Hkv * P, D] for writing single tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modelfleet_kernels.torch_cpu.linear import cpu_computes_bfloat16
from modelfleet_kernels.types import PagedBatch, PreparedBatch

# Gathered keys and values of one group, in elements: beyond this a group is split, so that a batch of long
# sequences needs a bounded workspace (64 MiB in bfloat16).
MAX_GATHERED_ELEMENTS = 32 * 1024 * 1024
# Query tokens attended at once. More of them compute more scores that causality hides; fewer make small products.
TILE_TOKENS = 128
# A whole tile's keys end at a multiple of this, so that few shapes exist.
KEY_MULTIPLE = 128
# Scores of one tile that may exist as a matrix; beyond it torch's fused attention has the smaller workspace.
MAX_TILE_SCORES = 8 * 1024 * 1024


def has_mkl() -> bool:
    """Whether this torch build multiplies matrices through MKL."""
    return bool(torch._C.has_mkl)


def attention_dtype(dtype: torch.dtype) -> torch.dtype:
    """What gathered keys and values of `dtype` are attended in.

    Torch's fused attention multiplies bfloat16 through MKL. Builds without it (Debian's) fall back to scalar loops:
    39 ms instead of 2.2 ms in float32 for 256 tokens of 9 heads, 5.3 instead of 0.7 ms for 32 one-token rows.
    """
    return dtype if has_mkl() else torch.float32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QueryTile:
    """Some query tokens of every row of a group and the keys that any of them sees."""

    tokens: slice  # of the Tq of each row
    keys: slice  # of the L
    mask: Tensor  # [B * Hkv, 1, 1, L] or [Tt, K]: added to the scores
    by_products: bool  # a whole tile, of one of few shapes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowGroup:
    """Rows gathered in one call: either any number of one-token rows, or one row of several tokens."""

    tokens: slice | Tensor  # which of the step's tokens; a tensor [B] where they are not adjacent
    rows: int  # B
    query_length: int  # Tq: 1, or that of the only row
    gather_rows: Tensor  # [2 * B * Hkv * M'] int64
    kv_length: int  # L = M' * P: keys gathered, enough for the longest of the group
    tiles: Sequence[QueryTile]  # one after the other; a single one where Tq is 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GatherBatch(PreparedBatch):
    """`PreparedBatch` of the torch_cpu backend."""

    write_rows: Tensor  # [T * 2 * Hkv] int64
    groups: Mapping[int | None, Sequence[RowGroup]]  # for each window


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """What one row looks at: blocks no token of it sees (all before its first one's window) are left out."""

    index: int
    first_token: int  # among the step's
    query_length: int  # Tq
    first_block: int  # of its block table
    unseen: int  # keys at the start of that block that a one-token row does not see
    kv_length: int  # L, from the first block on


def prepare(batch: PagedBatch, kv_cache: Tensor, query_heads: int, windows: frozenset[int | None]) -> GatherBatch:
    """Derives everything above from the batch."""
    _, _, kv_heads, block_tokens, head_dim = kv_cache.shape
    head_rows = torch.arange(2 * kv_heads)  # [2 * Hkv]
    blocks = batch.slot_mapping // block_tokens  # [T]
    offsets = batch.slot_mapping % block_tokens  # [T]
    write_rows = (blocks[:, None] * (2 * kv_heads) + head_rows) * block_tokens + offsets[:, None]  # [T, 2 * Hkv]
    longest = max(batch.sequence_lengths)
    # A window that no row has outgrown is none: the layers share one set of groups and masks.
    effective = {window: None if window is None or window >= longest else window for window in windows}
    groups = {window: _group_rows(batch, kv_cache, window, query_heads) for window in set(effective.values())}
    return GatherBatch(
        batch=batch,
        tokens=batch.slot_mapping.shape[0],
        query_heads=query_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        block_tokens=block_tokens,
        windows=windows,
        write_rows=write_rows.view(-1),
        groups={window: groups[effective[window]] for window in windows},
    )


def _group_rows(batch: PagedBatch, kv_cache: Tensor, window: int | None, query_heads: int) -> list[RowGroup]:
    rows = _rows(batch, block_tokens=kv_cache.shape[3], window=window)
    singles = [row for row in rows if row.query_length == 1]
    groups = [_single_token_group(batch, kv_cache, members) for members in _similar_lengths(singles, kv_cache)]
    groups += [
        _many_token_group(batch, kv_cache, row, window=window, query_heads=query_heads)
        for row in rows
        if row.query_length > 1
    ]
    return groups


def _rows(batch: PagedBatch, *, block_tokens: int, window: int | None) -> list[_Row]:
    rows: list[_Row] = []
    token = 0
    for index, (query_length, total) in enumerate(zip(batch.query_lengths, batch.sequence_lengths, strict=True)):
        first_seen = 0 if window is None else max(0, total - query_length + 1 - window)
        first_block, unseen = divmod(first_seen, block_tokens)
        rows.append(
            _Row(
                index=index,
                first_token=token,
                query_length=query_length,
                first_block=first_block,
                unseen=unseen,
                kv_length=total - first_block * block_tokens,
            )
        )
        token += query_length
    return rows


def _similar_lengths(rows: list[_Row], kv_cache: Tensor) -> list[list[_Row]]:
    """Splits rows so that padding to a group's longest at most doubles the work, within the workspace."""
    _, _, kv_heads, block_tokens, head_dim = kv_cache.shape
    groups: list[list[_Row]] = []
    longest_blocks = 0
    for row in sorted(rows, key=lambda member: (-member.kv_length, member.index)):
        blocks = -(-row.kv_length // block_tokens)
        row_elements = 2 * kv_heads * longest_blocks * block_tokens * head_dim
        fits = groups and 2 * blocks >= longest_blocks
        if fits and (len(groups[-1]) + 1) * row_elements <= MAX_GATHERED_ELEMENTS:
            groups[-1].append(row)
        else:
            groups.append([row])
            longest_blocks = blocks
    return [sorted(group, key=lambda member: member.index) for group in groups]


def _single_token_group(batch: PagedBatch, kv_cache: Tensor, members: list[_Row]) -> RowGroup:
    tokens = [row.first_token for row in members]
    lengths = torch.tensor([row.kv_length for row in members])[:, None]  # [B, 1]
    unseen = torch.tensor([row.unseen for row in members])[:, None]  # [B, 1]
    kv_heads, gathered = kv_cache.shape[2], _gathered_tokens(kv_cache, members, multiple=1)
    positions = torch.arange(gathered)  # [L]
    hidden = (positions >= lengths) | (positions < unseen)  # [B, L]
    mask = _additive(hidden, attention_dtype(kv_cache.dtype)).repeat_interleave(kv_heads, dim=0)  # [B * Hkv, L]
    is_adjacent = tokens[-1] - tokens[0] == len(tokens) - 1
    return RowGroup(
        tokens=slice(tokens[0], tokens[-1] + 1) if is_adjacent else torch.tensor(tokens),
        rows=len(members),
        query_length=1,
        gather_rows=_gather_rows(batch, kv_cache, members, tokens=gathered),
        kv_length=gathered,
        tiles=(QueryTile(tokens=slice(0, 1), keys=slice(0, gathered), mask=mask[:, None, None], by_products=False),),
    )


def _many_token_group(
    batch: PagedBatch, kv_cache: Tensor, row: _Row, *, window: int | None, query_heads: int
) -> RowGroup:
    has_whole_tiles = row.query_length >= TILE_TOKENS
    gathered = _gathered_tokens(kv_cache, [row], multiple=KEY_MULTIPLE if has_whole_tiles else 1)
    starts = range(0, row.query_length, TILE_TOKENS)
    ends = [*starts[1:], row.query_length]
    return RowGroup(
        tokens=slice(row.first_token, row.first_token + row.query_length),
        rows=1,
        query_length=row.query_length,
        gather_rows=_gather_rows(batch, kv_cache, [row], tokens=gathered),
        kv_length=gathered,
        tiles=[
            _tile(row, slice(first, end), window=window, query_heads=query_heads, cache_dtype=kv_cache.dtype)
            for first, end in zip(starts, ends, strict=True)
        ],
    )


def _tile(row: _Row, tokens: slice, *, window: int | None, query_heads: int, cache_dtype: torch.dtype) -> QueryTile:
    """The keys up to the tile's own last token, from its first one's window on."""
    past = row.kv_length - row.query_length
    first, last = past + tokens.start, past + tokens.stop
    first_key = 0 if window is None else max(0, first + 1 - window)
    is_whole = tokens.stop - tokens.start == TILE_TOKENS
    if is_whole:
        first_key, last = first_key // KEY_MULTIPLE * KEY_MULTIPLE, -(-last // KEY_MULTIPLE) * KEY_MULTIPLE
    own = torch.arange(first, past + tokens.stop)[:, None]  # [Tt, 1]
    positions = torch.arange(first_key, last)  # [K]
    hidden = positions > own  # [Tt, K]
    if window is not None:
        hidden |= positions <= own - window
    dtype = attention_dtype(cache_dtype)
    fits = query_heads * hidden.numel() <= MAX_TILE_SCORES
    is_fast = dtype != torch.bfloat16 or cpu_computes_bfloat16()
    return QueryTile(
        tokens=tokens,
        keys=slice(first_key, last),
        mask=_additive(hidden, dtype),
        by_products=is_whole and fits and is_fast,
    )


def _gathered_tokens(kv_cache: Tensor, members: list[_Row], *, multiple: int) -> int:
    """Whole blocks that hold the longest member's tokens, rounded up to `multiple`, in tokens."""
    block_tokens = kv_cache.shape[3]
    longest = max(row.kv_length for row in members)
    return -(-(-(-longest // multiple) * multiple) // block_tokens) * block_tokens


def _additive(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a score counts, -inf where it is hidden."""
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))


def _gather_rows(batch: PagedBatch, kv_cache: Tensor, members: list[_Row], *, tokens: int) -> Tensor:
    """The members' blocks as rows of [N * 2 * Hkv, P * D] in the order [2, B, Hkv, M'], flat."""
    _, _, kv_heads, block_tokens, _ = kv_cache.shape
    blocks = tokens // block_tokens  # M'
    tables = batch.block_tables[[row.index for row in members]]  # [B, M]
    columns = torch.tensor([row.first_block for row in members])[:, None] + torch.arange(blocks)  # [B, M']
    # Past a row's end any valid block will do.
    used = tables.gather(1, columns.clamp_(max=tables.shape[1] - 1))  # [B, M']
    head_rows = torch.arange(2 * kv_heads).view(2, 1, kv_heads, 1)
    return (used[None, :, None] * (2 * kv_heads) + head_rows).view(-1)
