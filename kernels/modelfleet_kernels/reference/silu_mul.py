"""The gated activation of Llama's MLP, the definition: float32 inside."""

from __future__ import annotations

import torch
from torch import Tensor


def silu_mul(gate_up: Tensor) -> Tensor:
    """gate_up [T, 2K] -> silu(gate) * up, [T, K]."""
    gate, up = gate_up.float().chunk(2, dim=-1)  # [T, K] each
    return (gate * torch.sigmoid(gate) * up).to(gate_up.dtype)
