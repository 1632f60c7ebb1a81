"""Rotation and cache write of every CPU backend against a float32 loop over tokens and pairs."""

from __future__ import annotations

import pytest
import torch
from modelfleet_kernels import Kernels, available_backends, select
from modelfleet_kernels.testing import assert_close, nan_filled

from tests_kernels.batches import Geometry, make_batch, make_rope, naive_rotation

GEOMETRIES = [
    Geometry(query_heads=1, kv_heads=1, head_dim=2, block_tokens=1),
    Geometry(query_heads=9, kv_heads=3, head_dim=64, block_tokens=5),
    Geometry(query_heads=6, kv_heads=2, head_dim=10),
    Geometry(query_heads=9, kv_heads=3, head_dim=64, block_tokens=16),
    Geometry(query_heads=2, kv_heads=1, head_dim=48, block_tokens=32),
]


@pytest.fixture(params=available_backends("cpu"))
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """Each backend that runs on CPU."""
    return select("cpu", request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("width", [2, 1000], ids=["partial", "whole"])
@pytest.mark.parametrize("rows", [[(1, 1)], [(1, 6), (4, 4), (3, 12)]], ids=str)
def test_queries_are_rotated_and_keys_and_values_land_in_their_slots(
    kernels: Kernels, geometry: Geometry, rows: list[tuple[int, int]], width: int, dtype: torch.dtype
) -> None:
    batch = make_batch(geometry, rows)
    before = geometry.cache(dtype, seed=1)
    packed = kernels.cache_from_plain(before)
    tokens, query_heads, kv_heads = sum(batch.query_lengths), geometry.query_heads, geometry.kv_heads
    generator = torch.Generator().manual_seed(2)
    qkv = torch.randn((tokens, query_heads + 2 * kv_heads, geometry.head_dim), generator=generator).to(dtype)
    rope = make_rope(tokens, min(width, geometry.head_dim), dtype=dtype)
    rotated = naive_rotation(qkv[:, : query_heads + kv_heads], rope)
    values = qkv[:, query_heads + kv_heads :].clone()
    prepared = kernels.prepare(batch, packed, query_heads=query_heads)
    out = nan_filled((tokens, query_heads, geometry.head_dim), dtype)
    kernels.rope_write_kv(qkv.view(tokens, -1), packed, prepared, rope, out=out)
    cache = kernels.cache_to_plain(packed)

    assert_close(out, rotated[:, :query_heads])
    blocks, offsets = batch.slot_mapping // geometry.block_tokens, batch.slot_mapping % geometry.block_tokens
    assert_close(cache[blocks, 0, :, offsets], rotated[:, query_heads:])
    assert torch.equal(cache[blocks, 1, :, offsets], values)
    untouched = torch.ones((geometry.blocks, geometry.block_tokens), dtype=torch.bool)
    untouched[blocks, offsets] = False
    assert torch.equal(cache.transpose(2, 3)[:, 0][untouched], before.transpose(2, 3)[:, 0][untouched])
    assert torch.equal(cache.transpose(2, 3)[:, 1][untouched], before.transpose(2, 3)[:, 1][untouched])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_comes_back_from_a_backend_as_it_went_in(kernels: Kernels, dtype: torch.dtype) -> None:
    geometry = Geometry(query_heads=6, kv_heads=3, head_dim=48, block_tokens=32, blocks=5)
    plain = geometry.cache(dtype, seed=1)
    packed = kernels.cache_from_plain(plain)
    assert packed.shape == plain.shape
    assert packed.data_ptr() != plain.data_ptr()
    assert torch.equal(kernels.cache_to_plain(packed), plain)
