"""Which backend is chosen, and what is refused: backends, and calls that break an op's contract."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch
from modelfleet_kernels import AttentionForm, BackendUnavailableError, available_backends, select
from modelfleet_kernels.checks import ContractError
from modelfleet_kernels.testing import assert_close, nan_filled, relative_rms

from tests_kernels.batches import Geometry, make_batch, make_rope

GEOMETRY = Geometry(query_heads=4, kv_heads=2, head_dim=8)


def test_the_automatic_choice_is_the_best_backend_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        kernels = select("cpu")
    assert kernels.backend_name == available_backends("cpu")[0] == "torch_cpu"
    assert caplog.messages == ["kernel backend torch_cpu chosen for cpu (available: torch_cpu, reference)"]


@pytest.mark.parametrize("name", available_backends("cpu"))
def test_an_explicit_request_is_granted_by_name(name: str) -> None:
    assert select("cpu", name).backend_name == name


def test_an_explicit_request_for_an_unavailable_backend_fails_and_names_the_others() -> None:
    with pytest.raises(BackendUnavailableError) as refused:
        select("cpu", "triton")
    expected = "kernel backend 'triton' is not available on 'cpu'; available: torch_cpu, reference"
    assert str(refused.value) == expected


def test_a_device_without_any_backend_is_refused() -> None:
    with pytest.raises(BackendUnavailableError, match="no kernel backend for device 'tpu'"):
        select("tpu")


@pytest.mark.parametrize(
    "change",
    [
        {"query_lengths": [1, 1]},
        {"query_lengths": [0]},
        {"sequence_lengths": [2]},
        {"sequence_lengths": [9]},
        {"block_tables": torch.zeros((2, 2), dtype=torch.int64)},
        {"block_tables": torch.zeros((1, 2), dtype=torch.int32)},
        {"slot_mapping": torch.zeros(2, dtype=torch.int64)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_batch_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    batch = make_batch(GEOMETRY, [(3, 6)])
    cache = GEOMETRY.cache(torch.float32, seed=1)
    select("cpu").prepare(batch, cache, query_heads=4)
    with pytest.raises(ContractError):
        select("cpu").prepare(dataclasses.replace(batch, **change), cache, query_heads=4)  # type: ignore[arg-type]


def test_ops_refuse_shapes_and_dtypes_outside_their_contract() -> None:
    kernels = select("cpu")
    batch = make_batch(GEOMETRY, [(3, 6)])
    cache = GEOMETRY.cache(torch.float32, seed=1)
    prepared = kernels.prepare(batch, cache, query_heads=4)
    packed = kernels.pack_linear(torch.ones((4, 6)))
    with pytest.raises(ContractError, match=r"query must be \[3, 4, 8\]"):
        kernels.paged_attention(torch.zeros((3, 2, 8)), cache, prepared)
    with pytest.raises(ContractError, match=r"qkv must be \[3, 64\]"):
        kernels.rope_write_kv(torch.zeros((3, 63)), cache, prepared, make_rope(3, 8, dtype=torch.float32))
    for rope in (make_rope(3, 10, dtype=torch.float32), make_rope(2, 8, dtype=torch.float32)):
        with pytest.raises(ContractError, match=r"cannot be rotated|rope tables must be"):
            kernels.rope_write_kv(torch.zeros((3, 64)), cache, prepared, rope)
    with pytest.raises(ContractError, match=r"rope tables must be \[3, 1, 8\] torch.float32, got .* bfloat16"):
        kernels.rope_write_kv(torch.zeros((3, 64)), cache, prepared, make_rope(3, 8, dtype=torch.bfloat16))
    with pytest.raises(ContractError, match=r"prepared for windows \{None\}, not for 5"):
        kernels.paged_attention(torch.zeros((3, 4, 8)), cache, prepared, AttentionForm(window=5))
    with pytest.raises(ContractError, match="at least one token"):
        kernels.prepare(batch, cache, query_heads=4, windows=[0])
    with pytest.raises(ContractError, match="contiguous"):
        kernels.paged_attention(torch.zeros((3, 4, 8)), cache[::2], prepared)
    with pytest.raises(ContractError, match=r"linear takes \[T, 6\]"):
        kernels.linear(torch.zeros((1, 5)), packed)
    with pytest.raises(ContractError, match="out must be"):
        kernels.linear(torch.zeros((1, 6)), packed, out=torch.zeros((1, 3)))
    with pytest.raises(ContractError, match="of that dtype or float32"):
        kernels.rms_norm(torch.zeros((1, 5)), torch.zeros(5, dtype=torch.bfloat16), epsilon=1e-5)
    with pytest.raises(ContractError, match="residual"):
        kernels.add_rms_norm(torch.zeros((1, 5)), torch.zeros((2, 5)), torch.zeros(5), epsilon=1e-5)
    for gated in (kernels.silu_mul, kernels.gelu_mul):
        with pytest.raises(ContractError, match=r"a gated activation takes \[T, 2K\], got \[1, 5\]"):
            gated(torch.zeros((1, 5)))


def test_a_batch_prepared_by_another_backend_is_refused() -> None:
    batch = make_batch(GEOMETRY, [(3, 6)])
    cache = GEOMETRY.cache(torch.float32, seed=1)
    prepared = select("cpu", "reference").prepare(batch, cache, query_heads=4)
    with pytest.raises(TypeError, match="prepared by another backend"):
        select("cpu", "torch_cpu").paged_attention(torch.zeros((3, 4, 8)), cache, prepared)


def test_the_comparison_sees_an_unwritten_element_and_an_error_above_rounding() -> None:
    expected = torch.ones(100)
    with pytest.raises(AssertionError, match="1 of 100 elements are NaN"):
        assert_close(torch.where(torch.arange(100) == 7, nan_filled([100], torch.float32), expected), expected)
    with pytest.raises(AssertionError, match="relative RMS error"):
        assert_close(expected + 1e-5, expected)
    assert relative_rms(expected * 2, expected) == 1.0
