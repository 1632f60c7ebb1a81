"""Weights as panels of 32 outputs, and products with them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from modelfleet_kernels.checks import ContractError
from modelfleet_kernels.cpu.library import LinearStruct, library, team
from modelfleet_kernels.cpu.limits import GATE_LANES, require_indices
from modelfleet_kernels.types import Activation, PackedLinear

ACTIVATION_CODES: dict[Activation, int] = {"silu": 0, "gelu_tanh": 1}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PanelLinear(PackedLinear):
    """`PackedLinear` whose weight is panels; `bias` is float32."""

    struct: LinearStruct


def pack(weight: Tensor, bias: Tensor | None) -> PanelLinear:
    """weight [O, K] bfloat16, K even; bias [O]."""
    outputs, inputs = weight.shape
    if weight.dtype != torch.bfloat16 or inputs % 2:
        raise ContractError(f"the cpu backend packs bfloat16 [O, even K], got {list(weight.shape)} {weight.dtype}")
    contiguous = weight.contiguous()
    panels = torch.empty(library().modelfleet_packed_numbers(outputs, inputs), dtype=torch.bfloat16)
    library().modelfleet_pack(this_team(), contiguous.data_ptr(), outputs, inputs, panels.data_ptr())
    bias_row = None if bias is None else bias.float().contiguous().clone()
    return PanelLinear(
        weight=panels,
        bias=bias_row,
        in_features=inputs,
        out_features=outputs,
        dtype=weight.dtype,
        struct=LinearStruct(panels.data_ptr(), None if bias_row is None else bias_row.data_ptr(), outputs, inputs),
    )


def interleave_gates(gate_up: Tensor) -> Tensor:
    """[2I, ...] = (gates, ups) -> 16 gates, their 16 ups, the next 16 gates and so on. I is a multiple of 16."""
    if gate_up.shape[0] % (2 * GATE_LANES):
        raise ContractError(f"the cpu backend packs gates by {GATE_LANES}, got {gate_up.shape[0]} gates and ups")
    gates, ups = gate_up.view(2, -1, GATE_LANES, *gate_up.shape[1:])  # [I / 16, 16, ...] each
    return torch.stack((gates, ups), dim=1).flatten(0, 2)


def linear(inputs: Tensor, packed: PackedLinear, dtype: torch.dtype) -> Tensor:
    """inputs [T, K] bfloat16 -> [T, O] bfloat16 or float32."""
    rows = inputs.contiguous()
    result = rows.new_empty((rows.shape[0], packed.out_features), dtype=dtype)
    function = library().modelfleet_linear if dtype == torch.bfloat16 else library().modelfleet_linear_float
    function(this_team(), struct_of(packed), rows.data_ptr(), rows.shape[0], result.data_ptr())
    return result


def gated_linear(inputs: Tensor, packed: PackedLinear, activation: Activation) -> Tensor:
    """inputs [T, K] -> [T, I]; `packed` holds interleaved gates and ups."""
    rows = inputs.contiguous()
    result = rows.new_empty((rows.shape[0], packed.out_features // 2))
    code = ACTIVATION_CODES[activation]
    arguments = (rows.data_ptr(), rows.shape[0], code, result.data_ptr())
    library().modelfleet_gated_linear(this_team(), struct_of(packed), *arguments)
    return result


def rows_of(packed: PackedLinear, indices: Tensor) -> Tensor:
    """indices [R] int64 -> those rows of the weight, [R, K]."""
    require_indices("a weight's rows", indices, count=packed.out_features)
    wanted = indices.contiguous()
    rows = packed.weight.new_empty((wanted.shape[0], packed.in_features))
    arguments = (wanted.data_ptr(), wanted.shape[0], rows.data_ptr())
    library().modelfleet_unpack_rows(this_team(), struct_of(packed), *arguments)
    return rows


def struct_of(packed: PackedLinear) -> LinearStruct:
    """What the library reads."""
    if not isinstance(packed, PanelLinear):
        raise TypeError("the weight was packed by another backend")
    return packed.struct


def this_team() -> int:
    """As many threads as torch computes with."""
    return team(torch.get_num_threads())


def array(structs: list[ctypes.Structure]) -> ctypes.Array[ctypes.Structure]:
    """Structs of one type, one after the other; at least one."""
    return (type(structs[0]) * len(structs))(*structs)
