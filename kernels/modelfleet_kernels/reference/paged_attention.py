"""Paged attention, the definition: one row after the other, float32 inside, a full score matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from modelfleet_kernels.types import AttentionForm, PreparedBatch


def paged_attention(query: Tensor, kv_cache: Tensor, prepared: PreparedBatch, form: AttentionForm) -> Tensor:
    """query [T, Hq, D], kv_cache [N, 2, Hkv, P, D] -> [T, Hq * D]."""
    batch = prepared.batch
    outputs: list[Tensor] = []
    first_token = 0
    for row, (query_length, total) in enumerate(zip(batch.query_lengths, batch.sequence_lengths, strict=True)):
        tokens = slice(first_token, first_token + query_length)
        first_token += query_length
        outputs.append(_attend(query[tokens], _read_row(kv_cache, batch.block_tables[row], total), form))
    return torch.cat(outputs).to(query.dtype)


def _read_row(kv_cache: Tensor, block_table: Tensor, total: int) -> Tensor:
    """The keys and values of one row, in order: [2, Hkv, L, D] float32."""
    block_tokens = kv_cache.shape[3]
    used = block_table[: -(-total // block_tokens)]  # [M']
    ordered = kv_cache[used].permute(1, 2, 0, 3, 4)  # [2, Hkv, M', P, D]
    return ordered.reshape(2, kv_cache.shape[2], -1, kv_cache.shape[4])[:, :, :total].float()


def _attend(query: Tensor, keys_values: Tensor, form: AttentionForm) -> Tensor:
    """query [Tq, Hq, D], keys_values [2, Hkv, L, D] -> [Tq, Hq * D] float32."""
    query_length, query_heads, head_dim = query.shape
    group = query_heads // keys_values.shape[1]
    keys, values = keys_values.repeat_interleave(group, dim=1)  # [Hq, L, D] each
    scores = query.float().transpose(0, 1) @ keys.transpose(1, 2) * form.scale_of(head_dim)  # [Hq, Tq, L]
    if form.soft_cap is not None:
        scores = form.soft_cap * torch.tanh(scores / form.soft_cap)
    total = keys.shape[1]
    positions = torch.arange(total, device=query.device)  # [L]
    distances = positions[total - query_length :, None] - positions[None]  # [Tq, L]
    visible = (distances >= 0) & (distances < (form.window or total))  # [Tq, L]
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)  # [Hq, Tq, L]
    output: Tensor = weights @ values  # [Hq, Tq, D]
    return output.transpose(0, 1).reshape(query_length, query_heads * head_dim)
