"""Linear, RMS norm and the gated activation of every CPU backend against float32 loops over rows."""

from __future__ import annotations

import math

import pytest
import torch
from modelfleet_kernels import Activation, Kernels, Needs, available_backends, select
from modelfleet_kernels.checks import ContractError
from modelfleet_kernels.testing import assert_close, nan_filled
from modelfleet_kernels.torch_cpu.linear import rounded_rows
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16]
# Tokens, features: none, one, odd, wide.
SHAPES = [(0, 8), (1, 1), (1, 8), (3, 7), (5, 576), (33, 130), (130, 66)]


@pytest.fixture(params=available_backends("cpu"))
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """Each backend that runs on CPU."""
    return select("cpu", request.param)


def random(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("out_features", [1, 6, 17, 32, 65])
@pytest.mark.parametrize("has_bias", [False, True])
def test_linear_equals_a_product_per_row(
    kernels: Kernels, shape: tuple[int, int], dtype: torch.dtype, out_features: int, has_bias: bool
) -> None:
    inputs = random(*shape, seed=1, dtype=dtype)
    weight = random(out_features, shape[1], seed=2, dtype=dtype)
    if kernels.refusal(Needs(dtype=dtype, head_dim=16, block_tokens=16, widths=(shape[1],))):
        with pytest.raises(ContractError, match=r"packs bfloat16 \[O, even K\]"):
            kernels.pack_linear(weight)
        return
    bias = random(out_features, seed=3, dtype=dtype) if has_bias else None
    expected = torch.zeros((shape[0], out_features))
    for row in range(shape[0]):
        for feature in range(out_features):
            expected[row, feature] = inputs[row].double() @ weight[feature].double()
            if bias is not None:
                expected[row, feature] += bias[feature].float()
    packed = kernels.pack_linear(weight, bias)
    weight.fill_(float("nan"))
    out = nan_filled(expected.shape, dtype)
    assert_close(kernels.linear(inputs, packed, out=out), expected)
    assert_close(kernels.linear_float32(inputs, packed).to(dtype), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 15, 200])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_gated_linear_layer_is_a_product_and_a_gated_activation(
    kernels: Kernels, rows: int, dtype: torch.dtype, activation: Activation, has_bias: bool
) -> None:
    inputs, weight = random(rows, 70, seed=1, dtype=dtype), random(96, 70, seed=2, dtype=dtype) / 4
    bias = random(96, seed=3, dtype=dtype) if has_bias else None
    product = inputs.float() @ weight.float().T + (0 if bias is None else bias.float())
    gate, up = product.chunk(2, dim=-1)
    active = (
        torch.nn.functional.silu(gate) if activation == "silu" else torch.nn.functional.gelu(gate, approximate="tanh")
    )
    packed = kernels.pack_gated_linear(weight, bias)
    assert_close(kernels.gated_linear(inputs, packed, activation, out=nan_filled((rows, 48), dtype)), active * up)


def test_rows_of_a_packed_weight_are_read_back_exactly_or_not_at_all(kernels: Kernels) -> None:
    weight = random(70, 18, seed=1, dtype=torch.bfloat16)
    rows = kernels.weight_rows(kernels.pack_linear(weight), torch.tensor([69, 0, 31, 32, 0]))
    if kernels.backend_name == "cpu":
        assert rows is not None
        assert torch.equal(rows, weight[[69, 0, 31, 32, 0]])
    else:
        assert rows is None


def test_linear_reads_inputs_through_their_strides(kernels: Kernels) -> None:
    wide = random(4, 12, seed=1, dtype=torch.bfloat16)
    weight = random(5, 6, seed=2, dtype=torch.bfloat16)
    packed = kernels.pack_linear(weight)
    assert_close(kernels.linear(wide[:, 3:9], packed), wide[:, 3:9].float() @ weight.float().T)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_rms_norm_equals_a_loop_over_rows(
    kernels: Kernels, shape: tuple[int, int], dtype: torch.dtype, scale: float
) -> None:
    inputs = (random(*shape, seed=1, dtype=torch.float32) * scale).to(dtype)
    weight = random(shape[1], seed=2, dtype=dtype)
    expected = torch.zeros(shape)
    for row in range(shape[0]):
        mean = sum(float(value) ** 2 for value in inputs[row]) / shape[1]
        expected[row] = inputs[row].float() / math.sqrt(mean + 1e-5) * weight.float()
    out = nan_filled(shape, dtype)
    assert_close(kernels.rms_norm(inputs, weight, epsilon=1e-5, out=out), expected)


@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32])
def test_heads_in_the_middle_of_wider_rows_are_normed_in_place(kernels: Kernels, weight_dtype: torch.dtype) -> None:
    wide = random(5, 7, 16, seed=1, dtype=torch.bfloat16)
    before, heads = wide.clone(), wide[:, 2:6]
    weight = 1 + random(16, seed=2, dtype=weight_dtype)
    kernels.rms_norm(heads, weight, epsilon=1e-6, out=heads)
    expected = before.float()
    for token in range(5):
        for head in range(2, 6):
            mean = sum(float(value) ** 2 for value in before[token, head]) / 16
            expected[token, head] *= weight.float() / math.sqrt(mean + 1e-6)
    assert_close(heads, expected[:, 2:6])
    assert torch.equal(wide[:, :2], before[:, :2])
    assert torch.equal(wide[:, 6:], before[:, 6:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_rms_norm_adds_in_place_and_norms_the_sum(kernels: Kernels, dtype: torch.dtype) -> None:
    inputs, residual = random(3, 10, seed=1, dtype=dtype), random(3, 10, seed=2, dtype=dtype)
    weight = random(10, seed=3, dtype=dtype)
    total = inputs + residual
    out = kernels.add_rms_norm(inputs, residual, weight, epsilon=1e-6, out=nan_filled((3, 10), dtype))
    assert torch.equal(residual, total)
    assert torch.equal(out, kernels.rms_norm(total, weight, epsilon=1e-6))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_silu_mul_equals_a_loop_over_rows(kernels: Kernels, shape: tuple[int, int], dtype: torch.dtype) -> None:
    gate_up = random(shape[0], 2 * shape[1], seed=1, dtype=dtype) * 4
    expected = torch.zeros(shape)
    for row in range(shape[0]):
        gate, up = gate_up[row, : shape[1]].float(), gate_up[row, shape[1] :].float()
        expected[row] = gate / (1 + torch.exp(-gate)) * up
    assert_close(kernels.silu_mul(gate_up, out=nan_filled(shape, dtype)), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gelu_mul_equals_a_loop_over_rows(kernels: Kernels, shape: tuple[int, int], dtype: torch.dtype) -> None:
    gate_up = random(shape[0], 2 * shape[1], seed=1, dtype=dtype) * 4
    expected = torch.zeros(shape)
    for row in range(shape[0]):
        for column in range(shape[1]):
            gate, up = float(gate_up[row, column]), float(gate_up[row, shape[1] + column])
            inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
            expected[row, column] = 0.5 * gate * (1 + math.tanh(inner)) * up
    assert_close(kernels.gelu_mul(gate_up, out=nan_filled(shape, dtype)), expected)


def test_any_number_of_rows_is_multiplied_as_one_of_few_numbers() -> None:
    rounded = {rows: rounded_rows(rows) for rows in range(1, 513)}

    assert all(rows <= padded <= max(rows + 15, rows * 9 / 8) for rows, padded in rounded.items())
    assert len(set(rounded.values())) == 35
    assert [rounded[rows] for rows in (1, 8, 9, 16, 64, 65, 256, 257, 512)] == [1, 8, 16, 16, 64, 80, 256, 288, 512]
