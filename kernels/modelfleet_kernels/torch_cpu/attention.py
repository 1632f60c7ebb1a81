"""Rotary embedding, the cache write and paged attention with few, large torch calls.

Each group of rows gathers its blocks once and attends in one fused call. The query heads of one KV head are folded
into the query axis for one-token rows, and into the head axis of an expanded view for longer ones:
`scaled_dot_product_attention(enable_gqa=True)` in bfloat16 on CPU is 15 times slower, measured at 32 rows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modelfleet_kernels.torch_cpu.gather import GatherBatch, RowGroup, attention_dtype
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
    width = prepared.query_heads * prepared.head_dim
    groups = prepared.groups[form.window]
    cache_rows = kv_cache.view(-1, prepared.block_tokens * prepared.head_dim)  # [N * 2 * Hkv, P * D]
    if len(groups) == 1 and isinstance(groups[0].tokens, slice):
        return _attend(query, _read(cache_rows, groups[0], prepared), groups[0], form).reshape(-1, width)
    output = torch.empty((prepared.tokens, width), dtype=query.dtype)  # [T, Hq * D]
    for group in groups:
        gathered = _read(cache_rows, group, prepared)
        output[group.tokens] = _attend(query[group.tokens], gathered, group, form).reshape(-1, width)
    return output


def _read(cache_rows: Tensor, group: RowGroup, prepared: GatherBatch) -> Tensor:
    """A group's keys and values, [2, B, Hkv, L, D]."""
    gathered = cache_rows.index_select(0, group.gather_rows)
    every = gathered.view(2, group.rows, prepared.kv_heads, -1, prepared.head_dim)  # [2, B, Hkv, M' P, D]
    return every[:, :, :, : group.kv_length]


def _attend(query: Tensor, keys_values: Tensor, group: RowGroup, form: AttentionForm) -> Tensor:
    """query [B * Tq, Hq, D], keys_values [2, B, Hkv, L, D] -> [B * Tq, Hkv, G, D]."""
    kv_heads, _, head_dim = keys_values.shape[2:]
    fold = query.shape[1] // kv_heads  # G
    attend = _fused if form.soft_cap is None else _capped
    if group.query_length == 1:
        return attend(query.reshape(group.rows, kv_heads, fold, head_dim), keys_values, group, form)
    by_token = query.reshape(group.query_length, kv_heads, fold, head_dim)  # [Tq, Hkv, G, D]
    output = attend(by_token.permute(1, 2, 0, 3), keys_values[:, 0, :, None], group, form)  # [Hkv, G, Tq, D]
    return output.permute(2, 0, 1, 3)


def _fused(query: Tensor, keys_values: Tensor, group: RowGroup, form: AttentionForm) -> Tensor:
    """query [X, Y, Z, D], keys_values [2, X, Y or 1, L, D] -> [X, Y, Z, D]."""
    dtype = attention_dtype(keys_values.dtype)
    keys_values = keys_values.to(dtype)
    if keys_values.shape[2] != query.shape[1]:
        keys_values = keys_values.expand(2, *query.shape[:2], -1, -1)
    keys, values = keys_values  # [X, Y, L, D] each
    output = nn.functional.scaled_dot_product_attention(
        query.to(dtype),
        keys,
        values,
        attn_mask=group.mask,
        is_causal=group.mask is None and group.query_length > 1,
        scale=form.scale,
    )  # [X, Y, Z, D]
    return output.to(query.dtype)


def _capped(query: Tensor, keys_values: Tensor, group: RowGroup, form: AttentionForm) -> Tensor:
    """`_fused` with capped scores, which torch's fused attention has not: full score matrices, in float32.

    One KV head's after the other where there are several query tokens: the largest of them bounds the workspace.
    """
    if group.query_length == 1:
        return _attend_capped(query, keys_values, group.mask, form)
    mask = group.mask
    if mask is None:
        mask = torch.full((group.query_length, group.kv_length), float("-inf")).triu_(1)  # [Tq, L]
    heads = range(query.shape[0])
    return torch.stack([_attend_capped(query[head], keys_values[:, head], mask, form) for head in heads])


def _attend_capped(query: Tensor, keys_values: Tensor, mask: Tensor | None, form: AttentionForm) -> Tensor:
    """query [..., Z, D], keys_values [2, ..., L, D] -> [..., Z, D]."""
    if form.soft_cap is None:
        raise TypeError("capped attention needs a soft cap")
    scale = query.shape[-1] ** -0.5 if form.scale is None else form.scale
    scores = query.float() @ keys_values[0].float().transpose(-1, -2)  # [..., Z, L]
    scores.mul_(scale / form.soft_cap).tanh_().mul_(form.soft_cap)
    if mask is not None:
        scores += mask
    attended: Tensor = scores.softmax(dim=-1) @ keys_values[1].float()
    return attended.to(query.dtype)
