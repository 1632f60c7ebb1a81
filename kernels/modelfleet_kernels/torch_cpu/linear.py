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
    if not packed.weight.is_mkldnn:
        return nn.functional.linear(inputs, packed.weight, packed.bias)
    rows = inputs.shape[0]
    if rows == 0:
        return inputs.new_empty((0, packed.out_features))
    padding = rounded_rows(rows) - rows
    padded = nn.functional.pad(inputs, (0, 0, 0, padding)) if padding else inputs.contiguous()
    result: Tensor = torch.ops.mkldnn._linear_pointwise.default(padded, packed.weight, packed.bias, "none", [], "")
    return result[:rows]


def rounded_rows(rows: int) -> int:
    """How many rows are multiplied for `rows`: few different numbers, each at most an eighth more or 8 more.

    oneDNN compiles a product for every number of rows and keeps it: about 1 ms and 0.8 MB each for four layers' worth
    of shapes; serving meets every number up to its token budget.
    """
    if rows <= 8:
        return rows
    multiple = 8 if rows <= 64 else 16 if rows <= 256 else 32 if rows <= 512 else 128
    return -(-rows // multiple) * multiple
