"""Rotary frequencies from the model's configuration: default, linear and llama3 scaling. Su et al. 2021."""

from __future__ import annotations

import math

import torch
from modelfleet_kernels import RopeTables
from torch import Tensor

from modelfleet_engine.model_config import RopeConfig


class RotaryEmbedding:
    """Computes the tables of a step's positions: T * D / 2 cosines, cheaper than a table as long as the context."""

    def __init__(self, config: RopeConfig, *, head_dim: int, dtype: torch.dtype) -> None:
        self._inverse_frequencies = inverse_frequencies(config, head_dim=head_dim)  # [D / 2] float32
        self._dtype = dtype

    def tables(self, positions: Tensor) -> RopeTables:
        """positions [T] int64 -> tables [T, 1, D] in the model's dtype."""
        angles = positions.float()[:, None, None] * self._inverse_frequencies  # [T, 1, D / 2]
        cos, sin = angles.cos().to(self._dtype), angles.sin().to(self._dtype)  # [T, 1, D / 2] each
        return RopeTables(cos=torch.cat((cos, cos), dim=-1), signed_sin=torch.cat((-sin, sin), dim=-1))


def inverse_frequencies(config: RopeConfig, *, head_dim: int) -> Tensor:
    """[D / 2] float32: theta ** (-2 i / D), then scaled as the configuration says."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim  # [D / 2]
    frequencies = 1.0 / config.theta**exponents  # [D / 2]
    if config.kind == "default":
        return frequencies
    if config.kind == "linear":
        return frequencies / config.factor
    return _llama3(frequencies, config)


def _llama3(frequencies: Tensor, config: RopeConfig) -> Tensor:
    """Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between interpolated."""
    wavelengths = 2 * math.pi / frequencies  # [D / 2]
    turns = config.original_max_position_embeddings / wavelengths  # [D / 2]: full turns within the original context
    kept = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    share = kept.clamp(0.0, 1.0)  # [D / 2]: 0 is stretched, 1 is kept
    return (1 - share) * frequencies / config.factor + share * frequencies
