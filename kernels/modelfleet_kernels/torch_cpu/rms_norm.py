"""RMS norm in as few torch calls as its rows are worth: torch has no fused one on CPU and runs eight operators."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Up to here the operators' overhead counts, beyond it the elements.
FEW_ELEMENTS = 16 * 1024


def rms_norm(inputs: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """inputs [..., K], weight [K] of the same dtype or float32 -> [..., K]."""
    if inputs.numel() <= FEW_ELEMENTS:
        return _mirrored(inputs, weight, epsilon)
    if weight.dtype == inputs.dtype:
        return nn.functional.rms_norm(inputs, weight.shape, weight, epsilon)
    # Torch has no fused norm of two dtypes, and warns.
    return nn.functional.rms_norm(inputs.to(weight.dtype), weight.shape, weight, epsilon).to(inputs.dtype)


def _mirrored(inputs: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """By torch's fused layer norm: (x, -x) has a mean of zero, so its variance is the mean of x's squares.

    Takes 8 instead of 14 microseconds for a row of 576; 3 % of a step of one sequence.
    """
    mirrored = torch.cat((inputs, -inputs), dim=-1)  # [..., 2K]
    normed = torch.layer_norm(mirrored, mirrored.shape[-1:], torch.cat((weight, weight)), None, epsilon)  # [..., 2K]
    return normed[..., : inputs.shape[-1]]
