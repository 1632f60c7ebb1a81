"""RMS norm, the definition: float32 inside, one rounding at the end."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(inputs: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """inputs [..., K], weight [K] -> [..., K]."""
    wide = inputs.float()  # [..., K]
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + epsilon)  # [..., 1]
    return (wide * scale * weight.float()).to(inputs.dtype)
