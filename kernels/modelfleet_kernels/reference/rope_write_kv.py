"""Rotary embedding and the write into the paged cache, the definition: float32 inside, one rounding at the end."""

from __future__ import annotations

import torch
from torch import Tensor

from modelfleet_kernels.types import PreparedBatch, RopeTables


def rotate(heads: Tensor, rope: RopeTables) -> Tensor:
    """heads [T, H, D] -> [T, H, D]. Su et al. 2021, in halves of the rotated part as GPT-NeoX does it."""
    width = rope.cos.shape[-1]  # R
    wide = heads[..., :width].float()  # [T, H, R]
    first, second = wide.chunk(2, dim=-1)  # [T, H, R/2] each
    swapped = torch.cat((second, first), dim=-1)  # [T, H, R]
    turned = wide * rope.cos.float() + swapped * rope.signed_sin.float()  # [T, H, R]
    return torch.cat((turned.to(heads.dtype), heads[..., width:]), dim=-1)


def rope_write_kv(qkv: Tensor, kv_cache: Tensor, prepared: PreparedBatch, rope: RopeTables) -> Tensor:
    """qkv [T, (Hq + 2 Hkv) D], kv_cache [N, 2, Hkv, P, D] -> rotated query [T, Hq, D]."""
    batch = prepared.batch
    key_head, value_head = prepared.query_heads, prepared.query_heads + prepared.kv_heads
    heads = qkv.reshape(prepared.tokens, value_head + prepared.kv_heads, prepared.head_dim)  # [T, Hq + 2 Hkv, D]
    query = heads[:, :key_head]  # [T, Hq, D]
    key = heads[:, key_head:value_head]  # [T, Hkv, D]
    value = heads[:, value_head:]  # [T, Hkv, D]
    blocks = batch.slot_mapping // prepared.block_tokens  # [T]
    offsets = batch.slot_mapping % prepared.block_tokens  # [T]
    kv_cache[blocks, 0, :, offsets] = rotate(key, rope)
    kv_cache[blocks, 1, :, offsets] = value
    return rotate(query, rope)
