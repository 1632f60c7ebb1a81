"""Paged attention of every CPU backend against a float32 loop over tokens, heads and positions."""

from __future__ import annotations

import pytest
import torch
from modelfleet_kernels import AttentionForm, Kernels, available_backends, select
from modelfleet_kernels.testing import assert_close, nan_filled
from modelfleet_kernels.torch_cpu import gather

from tests_kernels.batches import Geometry, fill_sequences, make_batch, naive_attention

GEOMETRIES = [
    Geometry(query_heads=1, kv_heads=1, head_dim=2),
    Geometry(query_heads=9, kv_heads=3, head_dim=64, block_tokens=5),
    Geometry(query_heads=4, kv_heads=4, head_dim=6, block_tokens=1, blocks=160),
    Geometry(query_heads=8, kv_heads=1, head_dim=10, block_tokens=32, blocks=8),
    Geometry(query_heads=9, kv_heads=3, head_dim=64, block_tokens=16),
    Geometry(query_heads=50, kv_heads=1, head_dim=48, block_tokens=32),
    Geometry(query_heads=2, kv_heads=2, head_dim=256, block_tokens=16),
]
# (query length, sequence length) per row.
BATCHES = [
    [(1, 1)],
    [(1, 7)],
    [(3, 3)],
    [(3, 11)],
    [(1, 5), (1, 5), (1, 5)],
    [(1, 1), (1, 9), (1, 16), (1, 2)],
    [(1, 4), (1, 13), (5, 5), (2, 17), (1, 3)],
    [(17, 40), (1, 33)],
]


@pytest.fixture(params=available_backends("cpu"))
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """Each backend that runs on CPU."""
    return select("cpu", request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("rows", BATCHES, ids=str)
def test_attention_over_scattered_blocks_equals_the_loop(
    kernels: Kernels, geometry: Geometry, rows: list[tuple[int, int]], dtype: torch.dtype
) -> None:
    batch = make_batch(geometry, rows)
    cache = geometry.cache(dtype, seed=1)
    fill_sequences(cache, batch, seed=2)
    tokens = sum(batch.query_lengths)
    generator = torch.Generator().manual_seed(3)
    query = torch.randn((tokens, geometry.query_heads, geometry.head_dim), generator=generator).to(dtype)
    prepared = kernels.prepare(batch, cache, query_heads=geometry.query_heads)
    out = nan_filled((tokens, geometry.query_heads * geometry.head_dim), dtype)
    kernels.paged_attention(query, kernels.cache_from_plain(cache), prepared, out=out)
    assert_close(out, naive_attention(query, cache, batch))


# Every field alone, all together, windows of one token, of a block's edges, inside a chunk and beyond every sequence.
FORMS = [
    AttentionForm(scale=0.3),
    AttentionForm(window=1),
    AttentionForm(window=4),
    AttentionForm(window=5, scale=1.0),
    AttentionForm(window=100),
    AttentionForm(soft_cap=1.5),
    AttentionForm(window=7, soft_cap=2.0, scale=0.7),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("rows", BATCHES, ids=str)
def test_scale_window_and_soft_cap_equal_the_loop(
    kernels: Kernels, form: AttentionForm, rows: list[tuple[int, int]], dtype: torch.dtype
) -> None:
    geometry = Geometry(query_heads=6, kv_heads=2, head_dim=16, block_tokens=16)
    batch = make_batch(geometry, rows)
    cache = geometry.cache(dtype, seed=1)
    fill_sequences(cache, batch, seed=2)
    tokens = sum(batch.query_lengths)
    query = torch.randn((tokens, 6, 16), generator=torch.Generator().manual_seed(3)).to(dtype)
    # One preparation serves layers of every kind.
    prepared = kernels.prepare(batch, cache, query_heads=6, windows=[None, *(item.window for item in FORMS)])
    out = nan_filled((tokens, 96), dtype)
    kernels.paged_attention(query, kernels.cache_from_plain(cache), prepared, form, out=out)
    assert_close(out, naive_attention(query, cache, batch, form))


@pytest.mark.parametrize("window", [None, 9])
def test_an_offset_that_all_scores_of_a_token_share_costs_no_digits(kernels: Kernels, window: int | None) -> None:
    """As a bias on queries and keys makes it; rounded to bfloat16, scores of 200 are whole numbers."""
    geometry = Geometry(query_heads=4, kv_heads=2, head_dim=64, block_tokens=16)
    batch = make_batch(geometry, [(1, 4), (1, 30), (5, 5), (12, 21)])
    cache = geometry.cache(torch.bfloat16, seed=1)
    fill_sequences(cache, batch, seed=2)
    query = torch.randn((19, 4, 64), generator=torch.Generator().manual_seed(3)).bfloat16()
    query[..., 0], cache[:, 0, ..., 0] = 40.0, 40.0
    form = AttentionForm(large_offset=True, window=window)
    prepared = kernels.prepare(batch, cache, query_heads=4, windows=[window])
    out = kernels.paged_attention(query, kernels.cache_from_plain(cache), prepared, form)
    assert_close(out, naive_attention(query, cache, batch, form))


# The reference reads every block and masks: it defines results, not costs.
@pytest.mark.parametrize("backend", [name for name in available_backends("cpu") if name != "reference"])
def test_blocks_before_the_window_are_not_read(backend: str) -> None:
    kernels = select("cpu", backend)
    geometry = Geometry(query_heads=2, kv_heads=1, head_dim=16, block_tokens=16)
    batch = make_batch(geometry, [(1, 126), (1, 40), (3, 102)])
    cache = geometry.cache(torch.bfloat16, seed=1)
    fill_sequences(cache, batch, seed=2)
    query = torch.randn((5, 2, 16), generator=torch.Generator().manual_seed(3)).bfloat16()
    form = AttentionForm(window=21)
    expected = naive_attention(query, cache, batch, form)
    # The first keys that may be seen are 105, 19 and 79: blocks 0-5, 0 and 0-3 may hold anything, even NaN.
    for row, unseen_blocks in ((0, 6), (1, 1), (2, 4)):
        cache[batch.block_tables[row, :unseen_blocks]] = float("nan")
    prepared = kernels.prepare(batch, cache, query_heads=2, windows=[21])
    assert_close(kernels.paged_attention(query, kernels.cache_from_plain(cache), prepared, form), expected)


def test_layers_share_their_preparation_while_no_row_has_outgrown_the_window() -> None:
    geometry = Geometry(query_heads=2, kv_heads=1, head_dim=4)
    batch = make_batch(geometry, [(1, 8), (3, 5)])
    cache = geometry.cache(torch.float32, seed=1)
    prepared = gather.prepare(batch, cache, query_heads=2, windows=frozenset((None, 8, 7)))
    assert prepared.groups[8] is prepared.groups[None]
    assert prepared.groups[7] is not prepared.groups[None]


def test_a_query_that_is_a_view_of_a_wider_tensor_is_read_through_its_strides(kernels: Kernels) -> None:
    geometry = Geometry(query_heads=4, kv_heads=2, head_dim=16, block_tokens=16)
    batch = make_batch(geometry, [(1, 6), (3, 9)])
    cache = geometry.cache(torch.bfloat16, seed=1)
    fill_sequences(cache, batch, seed=2)
    wide = torch.randn((4, 7, 16), generator=torch.Generator().manual_seed(3)).bfloat16()
    prepared = kernels.prepare(batch, cache, query_heads=4)
    out = kernels.paged_attention(wide[:, 2:6], kernels.cache_from_plain(cache), prepared)
    assert_close(out, naive_attention(wide[:, 2:6], cache, batch))


def test_a_row_attends_to_the_same_values_alone_and_in_a_batch(kernels: Kernels) -> None:
    geometry = Geometry(query_heads=4, kv_heads=2, head_dim=16, block_tokens=16, blocks=128)
    rows = [(1, 160), (1, 3), (1, 161), (6, 19)]
    batch = make_batch(geometry, rows)
    plain = geometry.cache(torch.bfloat16, seed=1)
    fill_sequences(plain, batch, seed=2)
    cache = kernels.cache_from_plain(plain)
    query = torch.randn((9, 4, 16), generator=torch.Generator().manual_seed(3)).bfloat16()
    together = kernels.paged_attention(query, cache, kernels.prepare(batch, cache, query_heads=4))
    alone = make_batch(geometry, rows[:1])
    assert torch.equal(alone.block_tables[0], batch.block_tables[0, :10])
    single = kernels.paged_attention(query[:1], cache, kernels.prepare(alone, cache, query_heads=4))
    assert_close(single, together[:1])


def test_long_and_many_rows_are_split_to_bound_the_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = Geometry(query_heads=2, kv_heads=1, head_dim=4)
    batch = make_batch(geometry, [(1, 9), (1, 9), (1, 10), (1, 2), (1, 40)])
    cache = geometry.cache(torch.float32, seed=1)
    fill_sequences(cache, batch, seed=2)
    # Room for two rows of 3 blocks: 2 * 1 * 3 * 4 * 4 elements each.
    monkeypatch.setattr(gather, "MAX_GATHERED_ELEMENTS", 200)
    prepared = gather.prepare(batch, cache, query_heads=2, windows=frozenset((None,)))
    assert [(group.rows, group.kv_length) for group in prepared.groups[None]] == [(1, 40), (2, 12), (1, 12), (1, 4)]
    query = torch.randn((5, 2, 4), generator=torch.Generator().manual_seed(3))
    out = select("cpu", "torch_cpu").paged_attention(query, cache, prepared)
    assert_close(out, naive_attention(query, cache, batch))


def test_prompts_of_any_length_are_multiplied_in_few_shapes() -> None:
    geometry = Geometry(query_heads=2, kv_heads=1, head_dim=4, blocks=256)
    cache = geometry.cache(torch.float32, seed=1)
    shapes: set[tuple[int, int]] = set()
    for length in range(2, 400):
        batch = make_batch(geometry, [(length, length + length % 50)])
        (group,) = gather.prepare(batch, cache, query_heads=2, windows=frozenset((None,))).groups[None]
        shapes |= {(tile.tokens.stop - tile.tokens.start, tile.keys.stop) for tile in group.tiles if tile.by_products}
    assert shapes == {(128, 128), (128, 256), (128, 384), (128, 512)}


@pytest.mark.parametrize("window", [None, 130])
def test_long_prompts_equal_the_reference(kernels: Kernels, window: int | None) -> None:
    geometry = Geometry(query_heads=4, kv_heads=2, head_dim=16, block_tokens=16, blocks=512)
    batch = make_batch(geometry, [(1, 300), (300, 300), (256, 257), (130, 391)])
    cache = geometry.cache(torch.bfloat16, seed=1)
    fill_sequences(cache, batch, seed=2)
    query = torch.randn((687, 4, 16), generator=torch.Generator().manual_seed(3)).bfloat16()
    outputs = []
    for backend in (kernels, select("cpu", "reference")):
        prepared = backend.prepare(batch, cache, query_heads=4, windows=[window])
        form = AttentionForm(window=window)
        outputs.append(backend.paged_attention(query, backend.cache_from_plain(cache), prepared, form))
    assert_close(outputs[0], outputs[1])


@pytest.mark.parametrize("has_mkl", [True, False])
def test_bfloat16_is_attended_in_float32_where_torch_has_no_fast_product_for_it(
    has_mkl: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "has_mkl", lambda: has_mkl)
    assert gather.attention_dtype(torch.bfloat16) is (torch.bfloat16 if has_mkl else torch.float32)
    assert gather.attention_dtype(torch.float32) is torch.float32
    geometry = Geometry(query_heads=9, kv_heads=3, head_dim=64, block_tokens=5)
    batch = make_batch(geometry, [(1, 4), (1, 13), (5, 5), (2, 17)])
    cache = geometry.cache(torch.bfloat16, seed=1)
    fill_sequences(cache, batch, seed=2)
    query = torch.randn((9, 9, 64), generator=torch.Generator().manual_seed(3)).bfloat16()
    kernels = select("cpu", "torch_cpu")
    out = kernels.paged_attention(query, cache, kernels.prepare(batch, cache, query_heads=9))
    assert out.dtype is torch.bfloat16
    assert_close(out, naive_attention(query, cache, batch))
