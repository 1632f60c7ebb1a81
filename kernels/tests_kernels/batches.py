"""Batches over a paged cache for tests, and the float32 definitions they are compared with, written as loops."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from modelfleet_kernels import PagedBatch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Heads and blocks of a cache."""

    query_heads: int
    kv_heads: int
    head_dim: int
    block_tokens: int = 4
    blocks: int = 64

    def cache(self, dtype: torch.dtype, *, seed: int) -> Tensor:
        """A cache full of large finite numbers: what lies beyond a sequence must not be seen. [N, 2, Hkv, P, D]."""
        shape = (self.blocks, 2, self.kv_heads, self.block_tokens, self.head_dim)
        return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 1e3).to(dtype)


def make_batch(geometry: Geometry, rows: list[tuple[int, int]], *, dtype: torch.dtype, seed: int = 0) -> PagedBatch:
    """Rows of (query length, sequence length) with disjoint, shuffled block tables and random rotations."""
    generator = torch.Generator().manual_seed(seed)
    free = torch.randperm(geometry.blocks, generator=generator).tolist()
    needed = [-(-total // geometry.block_tokens) for _, total in rows]
    tables = torch.zeros((len(rows), max(needed)), dtype=torch.int64)  # [S, M]
    slots: list[int] = []
    for row, (query, total) in enumerate(rows):
        blocks = [free.pop() for _ in range(needed[row])]
        tables[row, : len(blocks)] = torch.tensor(blocks)
        slots += [
            blocks[position // geometry.block_tokens] * geometry.block_tokens + position % geometry.block_tokens
            for position in range(total - query, total)
        ]
    half = torch.rand((len(slots), geometry.head_dim // 2), generator=generator) * 6.28  # [T, D / 2]
    angles = torch.cat((half, half), dim=-1)  # [T, D]
    return PagedBatch(
        query_lengths=[query for query, _ in rows],
        sequence_lengths=[total for _, total in rows],
        block_tables=tables,
        slot_mapping=torch.tensor(slots),
        rope_cos=angles.cos().to(dtype),
        rope_sin=angles.sin().to(dtype),
    )


def fill_sequences(cache: Tensor, batch: PagedBatch, *, seed: int) -> None:
    """Puts unit-size keys and values at every position of every row."""
    generator = torch.Generator().manual_seed(seed)
    block_tokens = cache.shape[3]
    for row, total in enumerate(batch.sequence_lengths):
        for position in range(total):
            block = batch.block_tables[row, position // block_tokens]
            fresh = torch.randn((2, cache.shape[2], cache.shape[4]), generator=generator)  # [2, Hkv, D]
            cache[block, :, :, position % block_tokens] = fresh.to(cache.dtype)


def naive_attention(query: Tensor, cache: Tensor, batch: PagedBatch) -> Tensor:
    """query [T, Hq, D] -> [T, Hq * D] in float32: one token, one head, one position at a time."""
    _, query_heads, head_dim = query.shape
    group, block_tokens = query_heads // cache.shape[2], cache.shape[3]
    output = torch.zeros(query.shape)  # [T, Hq, D]
    token = 0
    for row, (length, total) in enumerate(zip(batch.query_lengths, batch.sequence_lengths, strict=True)):
        for index in range(length):
            last = total - length + index
            for head in range(query_heads):
                pairs = [
                    cache[batch.block_tables[row, at // block_tokens], :, head // group, at % block_tokens].float()
                    for at in range(last + 1)
                ]
                scores = [float(query[token, head].float() @ key) / math.sqrt(head_dim) for key, _ in pairs]
                weights = [math.exp(score - max(scores)) for score in scores]
                mixed = sum(weight * value for weight, (_, value) in zip(weights, pairs, strict=True))
                output[token, head] = mixed / sum(weights)
            token += 1
    return output.reshape(-1, query_heads * head_dim)


def naive_rotation(heads: Tensor, batch: PagedBatch) -> Tensor:
    """heads [T, H, D] -> [T, H, D] in float32: pairs (i, i + D / 2) turned one by one."""
    output = torch.zeros(heads.shape)
    half = heads.shape[2] // 2
    for token in range(heads.shape[0]):
        for i in range(half):
            first, second = heads[token, :, i].float(), heads[token, :, i + half].float()
            cos, sin = batch.rope_cos[token, i].float(), batch.rope_sin[token, i].float()
            output[token, :, i] = first * cos - second * sin
            output[token, :, i + half] = second * cos + first * sin
    return output
