"""Rotary embedding, the cache write and paged attention with few, large torch calls.

Each group of rows gathers its blocks once and attends in one fused call. The query heads of one KV head are folded
into the query axis for one-token rows, and into the head axis of an expanded view for longer ones:
`scaled_dot_product_attention(enable_gqa=True)` in bfloat16 on CPU is 15 times slower, measured at 32 rows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modelfleet_kernels.torch_cpu.gather import GatherBatch, RowGroup, attention_dtype


def rope_write_kv(qkv: Tensor, kv_cache: Tensor, prepared: GatherBatch) -> Tensor:
    """qkv [T, (Hq + 2 Hkv) D], kv_cache [N, 2, Hkv, P, D] -> rotated query [T, Hq, D]."""
    query_heads, head_dim = prepared.query_heads, prepared.head_dim
    rotated_heads = query_heads + prepared.kv_heads
    heads = qkv.view(prepared.tokens, rotated_heads + prepared.kv_heads, head_dim)  # [T, Hq + 2 Hkv, D]
    query_key = heads[:, :rotated_heads]  # [T, Hq + Hkv, D]
    half = head_dim // 2
    swapped = torch.cat((query_key[..., half:], query_key[..., :half]), dim=-1)  # [T, Hq + Hkv, D]
    rotated = torch.addcmul(query_key * prepared.cos, swapped, prepared.signed_sin)  # [T, Hq + Hkv, D]
    key_value = torch.cat((rotated[:, query_heads:], heads[:, rotated_heads:]), dim=1)  # [T, 2 * Hkv, D]
    kv_cache.view(-1, head_dim).index_copy_(0, prepared.write_rows, key_value.view(-1, head_dim))
    return rotated[:, :query_heads]


def paged_attention(query: Tensor, kv_cache: Tensor, prepared: GatherBatch) -> Tensor:
    """query [T, Hq, D], kv_cache [N, 2, Hkv, P, D] -> [T, Hq * D]."""
    width = prepared.query_heads * prepared.head_dim
    cache_rows = kv_cache.view(-1, prepared.block_tokens * prepared.head_dim)  # [N * 2 * Hkv, P * D]
    if len(prepared.groups) == 1 and isinstance(prepared.groups[0].tokens, slice):
        return _attend(query, cache_rows, prepared.groups[0], prepared).reshape(-1, width)
    output = torch.empty((prepared.tokens, width), dtype=query.dtype)  # [T, Hq * D]
    for group in prepared.groups:
        output[group.tokens] = _attend(query[group.tokens], cache_rows, group, prepared).reshape(-1, width)
    return output


def _attend(query: Tensor, cache_rows: Tensor, group: RowGroup, prepared: GatherBatch) -> Tensor:
    """query [B * Tq, Hq, D] -> [B * Tq, Hkv, G, D], for one group."""
    kv_heads, head_dim = prepared.kv_heads, prepared.head_dim
    fold = prepared.query_heads // kv_heads  # G
    gathered = cache_rows.index_select(0, group.gather_rows).view(2, group.rows, kv_heads, -1, head_dim)
    dtype = attention_dtype(cache_rows.dtype)
    keys, values = gathered[:, :, :, : group.kv_length].to(dtype)  # [B, Hkv, L, D] each
    attention = nn.functional.scaled_dot_product_attention
    if group.query_length == 1:
        folded = query.reshape(group.rows, kv_heads, fold, head_dim).to(dtype)  # [B, Hkv, G, D]
        return attention(folded, keys, values, attn_mask=group.mask).to(query.dtype)
    shape = (kv_heads, fold, group.kv_length, head_dim)
    by_token = query.reshape(group.query_length, kv_heads, fold, head_dim).to(dtype)  # [Tq, Hkv, G, D]
    output = attention(
        by_token.permute(1, 2, 0, 3),  # [Hkv, G, Tq, D]
        keys[0, :, None].expand(shape),
        values[0, :, None].expand(shape),
        attn_mask=group.mask,
        is_causal=group.mask is None,
    )  # [Hkv, G, Tq, D]
    return output.permute(2, 0, 1, 3).to(query.dtype)
