"""Linear layers through oneDNN's prepacked bfloat16 weights where torch offers them, else `nn.functional.linear`.

A packed weight saves oneDNN a reorder per call: 1.3-2x at 4-64 rows on a 2-core AVX-512 machine. Distributions build
torch without these ops, so they are looked for, not assumed.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from modelfleet_kernels.types import PackedLinear


@functools.cache
def cpu_computes_bfloat16() -> bool:
    """Whether this torch build and this CPU multiply bfloat16 through oneDNN, which needs AVX-512.

    Without it torch falls back to scalar loops, a hundred times slower than float32.
    """
    if not torch._C._has_mkldnn:
        return False
    if hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported"):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


@functools.cache
def has_packed_bfloat16() -> bool:
    """Whether oneDNN's packed linear ops can be used for bfloat16."""
    operators = torch.ops.mkldnn
    has_operators = hasattr(operators, "_reorder_linear_weight") and hasattr(operators, "_linear_pointwise")
    return cpu_computes_bfloat16() and has_operators


def pack_linear(weight: Tensor, bias: Tensor | None) -> PackedLinear:
    """weight [O, K], bias [O]."""
    is_packed = weight.dtype == torch.bfloat16 and has_packed_bfloat16()
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous()) if is_packed else weight.clone()
    return PackedLinear(
        weight=packed,
        bias=None if bias is None else bias.clone(),
        in_features=weight.shape[1],
        out_features=weight.shape[0],
        dtype=weight.dtype,
    )


def linear(inputs: Tensor, packed: PackedLinear) -> Tensor:
    """inputs [T, K] -> [T, O]."""
    if packed.weight.is_mkldnn and inputs.shape[0] > 0:
        product = torch.ops.mkldnn._linear_pointwise.default
        result: Tensor = product(inputs.contiguous(), packed.weight, packed.bias, "none", [], "")
        return result
    if packed.weight.is_mkldnn:
        return inputs.new_empty((0, packed.out_features))
    return nn.functional.linear(inputs, packed.weight, packed.bias)
