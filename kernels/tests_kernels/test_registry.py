"""Which backend is chosen, and what is refused: backends, and calls that break an op's contract."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest
import torch
from modelfleet_kernels import AttentionForm, BackendUnavailableError, Needs, available_backends, select
from modelfleet_kernels.checks import ContractError
from modelfleet_kernels.cpu import library
from modelfleet_kernels.cpu.backend import CpuBackend
from modelfleet_kernels.testing import assert_close, nan_filled, relative_rms

from tests_kernels.batches import Geometry, make_batch, make_rope

GEOMETRY = Geometry(query_heads=4, kv_heads=2, head_dim=8)


FLOAT32 = Needs(dtype=torch.float32, head_dim=64, block_tokens=16)
BFLOAT16 = Needs(dtype=torch.bfloat16, head_dim=64, block_tokens=16, widths=(576, 1536), gated_width=1536)


def test_the_automatic_choice_is_the_best_backend_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        kernels = select("cpu", needs=BFLOAT16)
    assert kernels.backend_name == available_backends("cpu")[0]
    (message,) = caplog.messages
    assert message.startswith(f"kernel backend {kernels.backend_name} chosen for cpu")


def test_the_automatic_choice_computes_what_is_needed_and_says_what_it_left_out_and_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reason = CpuBackend.unavailable_reason() or "it computes bfloat16, not float32"
    with caplog.at_level(logging.INFO):
        kernels = select("cpu", needs=FLOAT32)
    assert kernels.backend_name == "torch_cpu"
    assert caplog.messages == [f"kernel backend torch_cpu chosen for cpu (not cpu: {reason})"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float32}, "it computes bfloat16, not float32"),
        ({"head_dim": 40}, "head_dim 40 is no multiple of 16"),
        ({"block_tokens": 8}, "block_tokens 8 is no multiple of 16"),
        ({"widths": (576, 15)}, "width 15 is no multiple of 2"),
        ({"gated_width": 24}, "gated width 24 is no multiple of 16"),
    ],
    ids=str,
)
def test_a_backend_asked_for_by_name_that_cannot_compute_what_is_needed_is_refused(
    change: dict[str, object], reason: str
) -> None:
    if unavailable := CpuBackend.unavailable_reason():
        pytest.skip(unavailable)
    needs = dataclasses.replace(BFLOAT16, **change)  # type: ignore[arg-type]
    with pytest.raises(BackendUnavailableError) as refused:
        select("cpu", "cpu", needs=needs)
    assert str(refused.value) == f"kernel backend 'cpu' cannot be used: {reason}"


def test_without_the_library_the_next_backend_is_chosen(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "libmodelfleet_cpu.so")
    library.unavailable_reason.cache_clear()
    try:
        with caplog.at_level(logging.INFO):
            assert select("cpu", needs=BFLOAT16).backend_name == "torch_cpu"
        assert available_backends("cpu") == ("torch_cpu", "reference")
    finally:
        library.unavailable_reason.cache_clear()
    assert "not cpu: libmodelfleet_cpu.so is not built" in caplog.messages[0]


@pytest.mark.parametrize("name", available_backends("cpu"))
def test_an_explicit_request_is_granted_by_name(name: str) -> None:
    assert select("cpu", name).backend_name == name


def test_an_explicit_request_for_an_unavailable_backend_fails_and_names_the_others() -> None:
    with pytest.raises(BackendUnavailableError) as refused:
        select("cpu", "triton")
    names = ", ".join(available_backends("cpu"))
    assert str(refused.value) == f"kernel backend 'triton' is not available on 'cpu'; available: {names}"


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
    kernels = select("cpu", needs=FLOAT32)
    kernels.prepare(batch, cache, query_heads=4)
    with pytest.raises(ContractError):
        kernels.prepare(dataclasses.replace(batch, **change), cache, query_heads=4)  # type: ignore[arg-type]


def test_ops_refuse_shapes_and_dtypes_outside_their_contract() -> None:
    kernels = select("cpu", needs=FLOAT32)
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
