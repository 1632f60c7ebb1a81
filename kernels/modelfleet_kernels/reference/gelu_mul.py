"""The gated activation of Gemma's MLP, the definition: GELU by its tanh formula, float32 inside."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gelu_mul(gate_up: Tensor) -> Tensor:
    """gate_up [T, 2K] -> gelu(gate) * up, [T, K]."""
    gate, up = gate_up.float().chunk(2, dim=-1)  # [T, K] each
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)  # [T, K]
    return (gate / 2 * (1 + torch.tanh(inner)) * up).to(gate_up.dtype)
