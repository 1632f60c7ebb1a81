"""Random numbers without a state: a hash of (seed, choice index, position, token id), the same in every batch.

Integer arithmetic modulo 2^32 on int32 tensors, so every device computes the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_MASK_64 = (1 << 64) - 1
# 2^32 / golden ratio, and the constants of Chris Wellons' lowbias32 (nullprogram.com/blog/2018/07/31), as int32.
_TOKEN_STEP = 0x9E3779B9 - (1 << 32)
_MULTIPLIER_1 = 0x7FEB352D
_MULTIPLIER_2 = 0x846CA68B - (1 << 32)
# The largest float32 below 1: keeps -log(1 - u) finite.
_LARGEST_UNIFORM = 1.0 - 2.0**-24


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawKey:
    """What one draw depends on. `position` is that of the token drawn."""

    seed: int
    choice_index: int
    position: int

    def words(self) -> tuple[int, int]:
        """Two well-mixed int32 words."""
        state = _splitmix64(self.seed & _MASK_64)
        state = _splitmix64(state ^ (self.choice_index & _MASK_64))
        state = _splitmix64(state ^ (self.position & _MASK_64))
        return _as_int32(state >> 32), _as_int32(state & 0xFFFFFFFF)


def exponential(keys: list[DrawKey], token_ids: Tensor) -> Tensor:
    """Standard exponential noise, [R, K] float32: for key r and token id [R or 1, K] int64."""
    words = torch.tensor([key.words() for key in keys], dtype=torch.int32)  # [R, 2]
    mixed = token_ids.to(torch.int32) * _TOKEN_STEP + words[:, :1]  # [R, K]
    mixed ^= (mixed >> 16) & 0xFFFF
    mixed *= _MULTIPLIER_1
    mixed ^= words[:, 1:]
    mixed ^= (mixed >> 15) & 0x1FFFF
    mixed *= _MULTIPLIER_2
    mixed ^= (mixed >> 16) & 0xFFFF
    mixed = (mixed >> 1) & 0x7FFFFFFF
    uniform = mixed.float().add_(0.5).mul_(2.0**-31).clamp_(max=_LARGEST_UNIFORM)  # [R, K] in (0, 1)
    return uniform.neg_().log1p_().neg_()


def _splitmix64(value: int) -> int:
    """One step of Vigna's SplitMix64."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return value ^ (value >> 31)


def _as_int32(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word
