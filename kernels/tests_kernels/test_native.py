"""The library as a guest of this process: what others left in memory, other threads, forks, wrong arguments."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from modelfleet_kernels import Kernels, select
from modelfleet_kernels.checks import ContractError
from modelfleet_kernels.cpu import library
from modelfleet_kernels.cpu.backend import CpuBackend
from modelfleet_kernels.testing import assert_close
from torch import Tensor

from tests_kernels.batches import Geometry, fill_sequences, make_batch, make_rope, naive_attention

GEOMETRY = Geometry(query_heads=6, kv_heads=2, head_dim=80, block_tokens=32)
NAN = float("nan")


@pytest.fixture
def kernels() -> Kernels:
    """The cpu backend."""
    if reason := CpuBackend.unavailable_reason():
        pytest.skip(reason)
    return select("cpu", "cpu")


def query_of(tokens: int) -> Tensor:
    """[T, Hq, D]."""
    return torch.randn((tokens, 6, 80), generator=torch.Generator().manual_seed(3)).bfloat16()


@pytest.mark.parametrize("rows", [[(1, 1)], [(1, 6), (1, 33)], [(7, 7), (5, 47), (40, 95)]], ids=str)
def test_what_another_request_left_past_a_sequence_s_end_is_not_in_its_answer(
    kernels: Kernels, rows: list[tuple[int, int]]
) -> None:
    batch = make_batch(GEOMETRY, rows)
    cache = GEOMETRY.cache(torch.bfloat16, seed=1).fill_(NAN)
    fill_sequences(cache, batch, seed=2)
    query = query_of(sum(batch.query_lengths))
    prepared = kernels.prepare(batch, cache, query_heads=6)
    out = kernels.paged_attention(query, kernels.cache_from_plain(cache), prepared)
    assert_close(out, naive_attention(query, cache, batch))


@pytest.mark.parametrize("kind", [0, 1], ids=["key", "value"])
def test_a_nan_that_a_request_sees_is_in_its_answers_and_in_no_other_s(kernels: Kernels, kind: int) -> None:
    batch = make_batch(GEOMETRY, [(3, 40), (50, 300), (1, 64)])
    cache = GEOMETRY.cache(torch.bfloat16, seed=1)
    fill_sequences(cache, batch, seed=2)
    query = query_of(54)
    expected = naive_attention(query, cache, batch)
    # Position 270 of the second row: its tokens from the 21st on see it.
    cache[batch.block_tables[1, 8], kind, :, 14, 5] = NAN
    prepared = kernels.prepare(batch, cache, query_heads=6)
    out = kernels.paged_attention(query, kernels.cache_from_plain(cache), prepared)
    assert bool(out[23:53].isnan().view(30, 6, 80).any(dim=2).all())
    assert_close(out[[0, 1, 2, 53]], expected[[0, 1, 2, 53]])


def test_gates_of_any_size_are_closed_open_or_nan(kernels: Kernels) -> None:
    gates = torch.tensor([-3e38, -1e37, -1e4, -0.0, 1e4, 3e38, NAN]).bfloat16()
    gate_up = torch.cat((gates, torch.ones(7).bfloat16()))[None]
    expected = [0.0, 0.0, 0.0, 0.0, float(gates[4]), float(gates[5])]
    for gated in (kernels.silu_mul, kernels.gelu_mul):
        assert gated(gate_up)[0, :6].tolist() == pytest.approx(expected, abs=1e-30)
        assert bool(gated(gate_up)[0, 6].isnan())


def test_scores_beyond_all_others_take_all_the_weight(kernels: Kernels) -> None:
    batch = make_batch(GEOMETRY, [(1, 300)])
    cache = GEOMETRY.cache(torch.bfloat16, seed=1)
    fill_sequences(cache, batch, seed=2)
    query = query_of(1) * 1e12
    prepared = kernels.prepare(batch, cache, query_heads=6)
    out = kernels.paged_attention(query, kernels.cache_from_plain(cache), prepared)
    assert_close(out, naive_attention(query, cache, batch))


def test_threads_that_call_at_once_each_get_their_own_answer(kernels: Kernels) -> None:
    weight = torch.randn((200, 64), generator=torch.Generator().manual_seed(1)).bfloat16()
    packed = kernels.pack_linear(weight)
    inputs = [torch.full((rows, 64), float(rows)).bfloat16() for rows in range(1, 5)]
    alone = [kernels.linear(rows, packed) for rows in inputs]

    def check(index: int) -> bool:
        return all(torch.equal(kernels.linear(inputs[index], packed), alone[index]) for _ in range(500))

    with ThreadPoolExecutor(max_workers=4) as pool:
        assert list(pool.map(check, range(4))) == [True] * 4


def test_a_forked_child_computes_with_threads_of_its_own(kernels: Kernels) -> None:
    del kernels
    program = """
import os, signal, sys, torch
from modelfleet_kernels import select
torch.set_num_threads(2)
kernels = select("cpu", "cpu")
packed = kernels.pack_linear(torch.ones((64, 64), dtype=torch.bfloat16))
inputs = torch.ones((1, 64), dtype=torch.bfloat16)
child = os.fork()
signal.alarm(30)
assert kernels.linear(inputs, packed).eq(64).all()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os._exit(0)
"""
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def _batch(kernels: Kernels, *, slot: int = 0, block: int = 0, dtype: torch.dtype = torch.bfloat16) -> None:
    geometry = Geometry(query_heads=6, kv_heads=2, head_dim=80, block_tokens=32, blocks=4)
    batch = make_batch(geometry, [(1, 3), (2, 2)])
    batch.slot_mapping[1] += slot
    batch.block_tables[1] += block
    kernels.prepare(batch, geometry.cache(dtype, seed=1), query_heads=6)


# Each of these was read or written where there is nothing of ours.
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda kernels: _batch(kernels, slot=128), IndexError, "slots are 0 to 127"),
        (lambda kernels: _batch(kernels, slot=-128), IndexError, "slots are 0 to 127"),
        (lambda kernels: _batch(kernels, block=4), IndexError, "blocks are 0 to 3"),
        (lambda kernels: _batch(kernels, dtype=torch.float32), ContractError, "it computes bfloat16, not float32"),
        (
            lambda kernels: kernels.rms_norm(torch.ones((2, 8)), torch.ones(8), epsilon=1e-5),
            ContractError,
            "the cpu backend computes bfloat16, got torch.float32",
        ),
        (lambda kernels: kernels.silu_mul(torch.ones((2, 8))), ContractError, "computes bfloat16"),
        (
            lambda kernels: kernels.weight_rows(kernels.pack_linear(torch.ones((5, 2)).bfloat16()), torch.tensor([5])),
            IndexError,
            "a weight's rows are 0 to 4, got 5",
        ),
        (
            lambda kernels: kernels.weight_rows(
                kernels.pack_linear(torch.ones((5, 2)).bfloat16()), torch.tensor([1], dtype=torch.int32)
            ),
            ContractError,
            r"rows of a weight must be \[R\] int64",
        ),
        (
            lambda kernels: kernels.pack_linear(torch.ones((5, 3)).bfloat16()),
            ContractError,
            r"packs bfloat16 \[O, even K\], got \[5, 3\]",
        ),
        (
            lambda kernels: kernels.pack_gated_linear(torch.ones((48, 2)).bfloat16()),
            ContractError,
            "packs gates by 16, got 48 gates and ups",
        ),
    ],
)
def test_what_the_library_cannot_compute_never_reaches_it(
    kernels: Kernels, call: Callable[[Kernels], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(kernels)


def test_a_batch_for_a_larger_cache_is_refused(kernels: Kernels) -> None:
    batch = make_batch(GEOMETRY, [(1, 3)])
    cache = GEOMETRY.cache(torch.bfloat16, seed=1)
    prepared = kernels.prepare(batch, cache, query_heads=6)
    with pytest.raises(ContractError, match="prepared for 64 blocks of bfloat16, got 63"):
        kernels.paged_attention(query_of(1), cache[:63], prepared)
    with pytest.raises(ContractError, match="prepared for 64 blocks of bfloat16, got 63"):
        kernels.rope_write_kv(
            torch.ones((1, 800)).bfloat16(), cache[:63], prepared, make_rope(1, 80, dtype=torch.bfloat16)
        )


@pytest.fixture
def other_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place that is looked at instead of the library's; nothing is there yet."""
    path = tmp_path / library.LIBRARY.name
    monkeypatch.setattr(library, "LIBRARY", path)
    monkeypatch.setattr(library, "unavailable_reason", library.unavailable_reason.__wrapped__)
    return path


def test_a_file_that_is_no_library_is_a_reason_and_no_error(other_library: Path) -> None:
    other_library.write_bytes(b"not ELF")
    reason = library.unavailable_reason()
    assert reason is not None
    assert reason.startswith(f"libmodelfleet_cpu.so cannot be loaded: {other_library}: ")


def test_a_library_with_other_structs_is_not_called(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    del kernels
    monkeypatch.setattr(library, "RopeStruct", library.HeadsStruct)
    assert library.unavailable_reason.__wrapped__() == (
        "libmodelfleet_cpu.so was built from other sources than these modules (kernels/native/build.sh builds it)"
    )
