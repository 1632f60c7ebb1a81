"""Batches over a paged cache for tests, and the float32 definitions they are compared with, written as loops."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from modelfleet_kernels import AttentionForm, PagedBatch, RopeTables
from modelfleet_kernels.types import PLAIN_ATTENTION
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


def make_batch(geometry: Geometry, rows: list[tuple[int, int]], *, seed: int = 0) -> PagedBatch:
    """Rows of (query length, sequence length) with disjoint, shuffled block tables."""
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
    return PagedBatch(
        query_lengths=[query for query, _ in rows],
        sequence_lengths=[total for _, total in rows],
        block_tables=tables,
        slot_mapping=torch.tensor(slots),
    )


def make_rope(tokens: int, width: int, *, dtype: torch.dtype, seed: int = 0) -> RopeTables:
    """Random rotations of the first `width` numbers of each head."""
    angles = torch.rand((tokens, 1, width // 2), generator=torch.Generator().manual_seed(seed)) * 6.28
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)  # [T, 1, R / 2] each
    return RopeTables(cos=torch.cat((cos, cos), dim=-1), signed_sin=torch.cat((-sin, sin), dim=-1))


def fill_sequences(cache: Tensor, batch: PagedBatch, *, seed: int) -> None:
    """Puts unit-size keys and values at every position of every row."""
    generator = torch.Generator().manual_seed(seed)
    block_tokens = cache.shape[3]
    for row, total in enumerate(batch.sequence_lengths):
        for position in range(total):
            block = batch.block_tables[row, position // block_tokens]
            fresh = torch.randn((2, cache.shape[2], cache.shape[4]), generator=generator)  # [2, Hkv, D]
            cache[block, :, :, position % block_tokens] = fresh.to(cache.dtype)


def naive_attention(query: Tensor, cache: Tensor, batch: PagedBatch, form: AttentionForm = PLAIN_ATTENTION) -> Tensor:
    """query [T, Hq, D] -> [T, Hq * D] in float32: one token, one head, one position at a time."""
    scale = form.scale if form.scale is not None else 1 / math.sqrt(query.shape[2])
    _, query_heads, head_dim = query.shape
    group, block_tokens = query_heads // cache.shape[2], cache.shape[3]
    output = torch.zeros(query.shape)  # [T, Hq, D]
    token = 0
    for row, (length, total) in enumerate(zip(batch.query_lengths, batch.sequence_lengths, strict=True)):
        for index in range(length):
            last = total - length + index
            first = 0 if form.window is None else max(0, last + 1 - form.window)
            for head in range(query_heads):
                pairs = [
                    cache[batch.block_tables[row, at // block_tokens], :, head // group, at % block_tokens].float()
                    for at in range(first, last + 1)
                ]
                scores = [float(query[token, head].float() @ key) * scale for key, _ in pairs]
                if form.soft_cap is not None:
                    scores = [form.soft_cap * math.tanh(score / form.soft_cap) for score in scores]
                weights = [math.exp(score - max(scores)) for score in scores]
                mixed = sum(weight * value for weight, (_, value) in zip(weights, pairs, strict=True))
                output[token, head] = mixed / sum(weights)
            token += 1
    return output.reshape(-1, query_heads * head_dim)


def naive_rotation(heads: Tensor, rope: RopeTables) -> Tensor:
    """heads [T, H, D] -> [T, H, D] in float32: pairs (i, i + R / 2) turned one by one, numbers from R on kept."""
    output = heads.float().clone()
    half = rope.cos.shape[-1] // 2
    for token in range(heads.shape[0]):
        for i in range(half):
            first, second = heads[token, :, i].float(), heads[token, :, i + half].float()
            cos, sin = rope.cos[token, 0, i].float(), rope.signed_sin[token, 0, i + half].float()
            output[token, :, i] = first * cos - second * sin
            output[token, :, i + half] = second * cos + first * sin
    return output
