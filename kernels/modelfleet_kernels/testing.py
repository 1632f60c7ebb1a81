"""What tests of ops compare with. Never imported by code that ships results."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Relative RMS error allowed against a float32 definition: a few roundings of the dtype's mantissa.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """RMS of the difference over the RMS of `expected`; NaN where either holds one."""
    difference = (actual.double() - expected.double()).square().mean().sqrt()
    scale = expected.double().square().mean().sqrt()
    return float(difference / scale.clamp_min(torch.finfo(torch.float64).tiny))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Same shape, no NaN, and within `TOLERANCE` of actual's dtype in relative RMS."""
    if actual.shape != expected.shape:
        raise AssertionError(f"shape {list(actual.shape)}, expected {list(expected.shape)}")
    if actual.isnan().any():
        raise AssertionError(f"{int(actual.isnan().sum())} of {actual.numel()} elements are NaN (never written?)")
    if actual.numel() == 0:
        return
    error, limit = relative_rms(actual, expected), TOLERANCE[actual.dtype]
    if not error <= limit:
        raise AssertionError(f"relative RMS error {error:.2e} above {limit:.0e} for {actual.dtype}")


def nan_filled(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An output that shows every element an op forgot to write."""
    return torch.full(tuple(shape), float("nan"), dtype=dtype)
