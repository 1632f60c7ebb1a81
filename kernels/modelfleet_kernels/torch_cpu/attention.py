"""Rotary embedding, the cache write and paged attention with few, large torch calls.

Each group of rows gathers its blocks once. The query heads of one KV head are folded into the query axis for one-token
rows, and into the head axis of an expanded view for longer ones: `scaled_dot_product_attention(enable_gqa=True)` in
bfloat16 on CPU is 15 times slower, measured at 32 rows.

Torch's fused attention multiplies through MKL. Two products through oneDNN with a softmax between them take half its
time, but oneDNN compiles 650 kB of code for every new shape, in 0.7 ms: only tiles of a few shapes go this way.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modelfleet_kernels.torch_cpu.gather import GatherBatch, QueryTile, RowGroup, attention_dtype
from modelfleet_kernels.types import AttentionForm, RopeTables


def rope_write_kv(qkv: Tensor, kv_cache: Tensor, prepared: GatherBatch, rope: RopeTables) -> Tensor:
    """qkv [T, (Hq + 2 Hkv) D], kv_cache [N, 2, Hkv, P, D] -> rotated query [T, Hq, D]."""
    query_heads, head_dim = prepared.query_heads, prepared.head_dim
    rotated_heads = query_heads + prepared.kv_heads
    heads = qkv.view(prepared.tokens, rotated_heads + prepared.kv_heads, head_dim)  # [T, Hq + 2 Hkv, D]
    query_key = heads[:, :rotated_heads]  # [T, Hq + Hkv, D]
    width = rope.cos.shape[-1]  # R
    if width == head_dim:
        rotated = _rotate(query_key, rope)  # [T, Hq + Hkv, D]
    else:
        rotated = torch.cat((_rotate(query_key[..., :width], rope), query_key[..., width:]), dim=-1)
    key_value = torch.cat((rotated[:, query_heads:], heads[:, rotated_heads:]), dim=1)  # [T, 2 * Hkv, D]
    kv_cache.view(-1, head_dim).index_copy_(0, prepared.write_rows, key_value.view(-1, head_dim))
    return rotated[:, :query_heads]


def _rotate(heads: Tensor, rope: RopeTables) -> Tensor:
    """[T, H, R] -> [T, H, R]."""
    half = heads.shape[-1] // 2
    swapped = torch.cat((heads[..., half:], heads[..., :half]), dim=-1)  # [T, H, R]
    return torch.addcmul(heads * rope.cos, swapped, rope.signed_sin)


def paged_attention(query: Tensor, kv_cache: Tensor, prepared: GatherBatch, form: AttentionForm) -> Tensor:
    """query [T, Hq, D], kv_cache [N, 2, Hkv, P, D] -> [T, Hq * D]."""
    groups = prepared.groups[form.window]
    cache_rows = kv_cache.view(-1, prepared.block_tokens * prepared.head_dim)  # [N * 2 * Hkv, P * D]
    if len(groups) == 1 and isinstance(groups[0].tokens, slice):
        return _attend_rows(query, _read(cache_rows, groups[0], prepared), groups[0], form)
    output = query.new_empty((prepared.tokens, prepared.query_heads * prepared.head_dim))  # [T, Hq * D]
    for group in groups:
        output[group.tokens] = _attend_rows(query[group.tokens], _read(cache_rows, group, prepared), group, form)
    return output


def _read(cache_rows: Tensor, group: RowGroup, prepared: GatherBatch) -> Tensor:
    """A group's keys and values, [2, B * Hkv, L, D]."""
    gathered = cache_rows.index_select(0, group.gather_rows)
    return gathered.view(2, group.rows * prepared.kv_heads, -1, prepared.head_dim)


def _attend_rows(query: Tensor, keys_values: Tensor, group: RowGroup, form: AttentionForm) -> Tensor:
    """query [B * Tq, Hq, D], keys_values [2, B * Hkv, L, D] -> [B * Tq, Hq * D]; B or Tq is 1."""
    dtype, (tokens, query_heads, head_dim) = attention_dtype(query.dtype), query.shape
    keys_values = keys_values.to(dtype)
    kv_rows = keys_values.shape[1]  # B * Hkv
    if group.query_length == 1:
        folded = query.reshape(kv_rows, 1, -1, head_dim).to(dtype)  # [B * Hkv, 1, G, D]
        attended = _attend(folded, keys_values, group.tiles[0], form)  # [B * Hkv, 1, G, D]
        return attended.view(tokens, query_heads * head_dim).to(query.dtype)
    by_token = query.view(tokens, kv_rows, -1, head_dim)  # [Tq, Hkv, G, D]
    output = torch.empty_like(by_token, memory_format=torch.contiguous_format)  # [Tq, Hkv, G, D]
    for tile in group.tiles:
        part = by_token[tile.tokens].permute(1, 2, 0, 3).to(dtype)  # [Hkv, G, Tt, D]
        output[tile.tokens] = _attend(part, keys_values[:, :, tile.keys], tile, form).permute(2, 0, 1, 3)
    return output.view(tokens, query_heads * head_dim)


def _attend(query: Tensor, keys_values: Tensor, tile: QueryTile, form: AttentionForm) -> Tensor:
    """query [X, Y, Z, D], keys_values [2, X, K, D] -> [X, Y, Z, D]."""
    if form.soft_cap is not None:
        # Torch's fused attention has no caps; in float32, because capped scores are large.
        return _by_products(query.float(), keys_values.float(), tile.mask, form).to(query.dtype)
    if tile.by_products:
        return _by_products(query, keys_values, tile.mask, form)
    keys, values = keys_values[:, :, None].expand(-1, -1, query.shape[1], -1, -1)  # [X, Y, K, D] each
    return nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=tile.mask, scale=form.scale)


def _by_products(query: Tensor, keys_values: Tensor, mask: Tensor, form: AttentionForm) -> Tensor:
    """query [X, Y, Z, D], keys_values [2, X, K, D] -> [X, Y, Z, D]."""
    keys, values = keys_values  # [X, K, D] each
    rows = query.reshape(query.shape[0], -1, query.shape[-1])  # [X, Y Z, D]
    scale = form.scale_of(query.shape[-1])
    if form.large_offset and form.soft_cap is None:
        # Relative to the first key's: the sum is rounded once, and a softmax does not see what all scores share.
        offset = (rows * keys[:, :1]).sum(dim=-1, keepdim=True).mul_(-scale)  # [X, Y Z, 1]
        scores = torch.baddbmm(offset, rows, keys.transpose(1, 2), alpha=scale)  # [X, Y Z, K]
    else:
        scores = torch.baddbmm(rows.new_empty(()), rows, keys.transpose(1, 2), beta=0, alpha=scale)  # [X, Y Z, K]
    if form.soft_cap is not None:
        scores.div_(form.soft_cap).tanh_().mul_(form.soft_cap)
    scores.view(*query.shape[:3], -1).add_(mask)
    return torch.bmm(scores.softmax(dim=-1), values).view(query.shape)
