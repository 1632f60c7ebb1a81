"""What the library computes, and the guards before it: it trusts its arguments, so nothing wrong may reach it."""

from __future__ import annotations

import torch
from torch import Tensor

from modelfleet_kernels.checks import ContractError
from modelfleet_kernels.types import Needs

PANEL_TOKENS = 16
GATE_LANES = 16


def refusal(needs: Needs) -> str | None:
    """Why it cannot compute what is needed, or None."""
    if needs.dtype != torch.bfloat16:
        return f"it computes bfloat16, not {str(needs.dtype).removeprefix('torch.')}"
    widths = [("width", width, 2) for width in needs.widths]
    gates = [("gated width", needs.gated_width, GATE_LANES)] if needs.gated_width else []
    for name, value, multiple in (
        ("head_dim", needs.head_dim, PANEL_TOKENS),
        ("block_tokens", needs.block_tokens, PANEL_TOKENS),
        *widths,
        *gates,
    ):
        if value % multiple:
            return f"{name} {value} is no multiple of {multiple}"
    return None


def require(needs: Needs) -> None:
    """Raises ContractError with the reason of `refusal`."""
    if reason := refusal(needs):
        raise ContractError(f"the cpu backend cannot compute this: {reason}")


def require_bfloat16(*tensors: Tensor) -> None:
    """Raises ContractError for another dtype."""
    for tensor in tensors:
        if tensor.dtype != torch.bfloat16:
            raise ContractError(f"the cpu backend computes bfloat16, got {tensor.dtype}")


def require_indices(name: str, indices: Tensor, *, count: int) -> None:
    """Raises IndexError where one of `indices`, any shape, is outside [0, count): it would be read or written there."""
    if indices.numel() == 0:
        return
    least, most = (int(bound) for bound in torch.aminmax(indices))
    if least < 0 or most >= count:
        raise IndexError(f"{name} are 0 to {count - 1}, got {least if least < 0 else most}")
