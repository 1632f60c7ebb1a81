"""RMS norm, the definition: float32 inside, one rounding at the end."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(inputs: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """inputs [T, K], weight [K] -> [T, K]."""
    wide = inputs.float()  # [T, K]
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + epsilon)  # [T, 1]
    return (wide * scale * weight.float()).to(inputs.dtype)
