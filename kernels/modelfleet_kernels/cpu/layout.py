"""The KV cache's layout of this backend, which native/cache.hpp describes, to and from the plain one."""

from __future__ import annotations

import torch
from torch import Tensor

from modelfleet_kernels.cpu.limits import PANEL_TOKENS


def from_plain(plain: Tensor) -> Tensor:
    """plain [N, 2, Hkv, P, D] -> the same numbers where this backend has them, in a tensor of the same shape."""
    blocks, _, kv_heads, block_tokens, head_dim = plain.shape
    keys = plain[:, 0].reshape(blocks, kv_heads, block_tokens // PANEL_TOKENS, PANEL_TOKENS, head_dim // 2, 2)
    values = plain[:, 1].reshape(blocks, kv_heads, block_tokens // 2, 2, head_dim)
    packed = torch.empty_like(plain, memory_format=torch.contiguous_format)
    packed[:, 0] = keys.transpose(3, 4).reshape(packed[:, 0].shape)
    packed[:, 1] = values.transpose(3, 4).reshape(packed[:, 1].shape)
    return packed


def to_plain(packed: Tensor) -> Tensor:
    """The inverse of `from_plain`."""
    blocks, _, kv_heads, block_tokens, head_dim = packed.shape
    keys = packed[:, 0].reshape(blocks, kv_heads, block_tokens // PANEL_TOKENS, head_dim // 2, PANEL_TOKENS, 2)
    values = packed[:, 1].reshape(blocks, kv_heads, block_tokens // 2, head_dim, 2)
    plain = torch.empty_like(packed, memory_format=torch.contiguous_format)
    plain[:, 0] = keys.transpose(3, 4).reshape(plain[:, 0].shape)
    plain[:, 1] = values.transpose(3, 4).reshape(plain[:, 1].shape)
    return plain
