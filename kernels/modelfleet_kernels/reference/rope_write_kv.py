"""Rotary embedding and the write into the paged cache, the definition: float32 inside, one rounding at the end."""

from __future__ import annotations

import torch
from torch import Tensor

from modelfleet_kernels.types import PreparedBatch


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """heads [T, H, D], cos and sin [T, D] -> [T, H, D]. Su et al. 2021, in halves as GPT-NeoX does it."""
    first, second = heads.float().chunk(2, dim=-1)  # [T, H, D/2] each
    turned = torch.cat((-second, first), dim=-1)  # [T, H, D]
    wide = heads.float() * cos.float()[:, None] + turned * sin.float()[:, None]  # [T, H, D]
    return wide.to(heads.dtype)


def rope_write_kv(qkv: Tensor, kv_cache: Tensor, prepared: PreparedBatch) -> Tensor:
    """qkv [T, (Hq + 2 Hkv) D], kv_cache [N, 2, Hkv, P, D] -> rotated query [T, Hq, D]."""
    batch = prepared.batch
    key_head, value_head = prepared.query_heads, prepared.query_heads + prepared.kv_heads
    heads = qkv.reshape(prepared.tokens, value_head + prepared.kv_heads, prepared.head_dim)  # [T, Hq + 2 Hkv, D]
    query = heads[:, :key_head]  # [T, Hq, D]
    key = heads[:, key_head:value_head]  # [T, Hkv, D]
    value = heads[:, value_head:]  # [T, Hkv, D]
    blocks = batch.slot_mapping // prepared.block_tokens  # [T]
    offsets = batch.slot_mapping % prepared.block_tokens  # [T]
    kv_cache[blocks, 0, :, offsets] = rotate(key, batch.rope_cos, batch.rope_sin)
    kv_cache[blocks, 1, :, offsets] = value
    return rotate(query, batch.rope_cos, batch.rope_sin)
