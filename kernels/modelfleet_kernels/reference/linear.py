"""The linear layer, the definition: torch's own product in the weight's dtype, nothing packed."""

from __future__ import annotations

from torch import Tensor, nn

from modelfleet_kernels.types import PackedLinear


def pack_linear(weight: Tensor, bias: Tensor | None) -> PackedLinear:
    """weight [O, K], bias [O]; copies, because the source may be a mapped file."""
    return PackedLinear(
        weight=weight.clone(),
        bias=None if bias is None else bias.clone(),
        in_features=weight.shape[1],
        out_features=weight.shape[0],
        dtype=weight.dtype,
    )


def linear(inputs: Tensor, packed: PackedLinear) -> Tensor:
    """inputs [T, K] -> [T, O]."""
    return nn.functional.linear(inputs, packed.weight, packed.bias)
