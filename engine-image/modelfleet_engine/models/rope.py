"""Rotary frequencies from the model's configuration, and the tables of a step's positions. Su et al. 2021."""

from __future__ import annotations

import math

import torch
from modelfleet_kernels import RopeTables
from torch import Tensor

from modelfleet_engine.rope_config import RopeConfig


class RotaryEmbedding:
    """Computes the tables of a step's positions: T * R / 2 cosines, cheaper than a table as long as the context.

    LongRoPE has two sets of factors, for sequences within and beyond the original context. They are chosen once, by
    `max_model_len`, the longest sequence the engine may serve: keys in the cache were rotated by one of them, so a
    sequence cannot change sides as it grows (transformers does, and drops its cache). A model served with a
    `max_model_len` of at most its original context computes what transformers does for short prompts.
    """

    def __init__(self, config: RopeConfig, *, head_dim: int, max_model_len: int, dtype: torch.dtype) -> None:
        width = config.rotary_width(head_dim)
        self._inverse_frequencies = inverse_frequencies(config, width=width, max_model_len=max_model_len)  # [R / 2]
        self._attention_factor = config.attention_factor
        self._dtype = dtype

    def tables(self, positions: Tensor) -> RopeTables:
        """positions [T] int64 -> tables [T, 1, R] in the model's dtype."""
        angles = positions.float()[:, None, None] * self._inverse_frequencies  # [T, 1, R / 2]
        cos, sin = angles.cos(), angles.sin()  # [T, 1, R / 2] each
        if self._attention_factor != 1.0:
            cos, sin = cos * self._attention_factor, sin * self._attention_factor
        cos, sin = cos.to(self._dtype), sin.to(self._dtype)
        return RopeTables(cos=torch.cat((cos, cos), dim=-1), signed_sin=torch.cat((-sin, sin), dim=-1))


def inverse_frequencies(config: RopeConfig, *, width: int, max_model_len: int) -> Tensor:
    """[R / 2] float32: theta ** (-2 i / R), then scaled as the configuration says."""
    exponents = torch.arange(0, width, 2, dtype=torch.int64).float() / width  # [R / 2]
    wavelengths = config.theta**exponents  # [R / 2], over 2 pi
    if config.kind == "linear":
        return 1.0 / wavelengths / config.factor
    if config.kind == "llama3":
        return _llama3(1.0 / wavelengths, config)
    if config.kind == "yarn":
        return _yarn(1.0 / wavelengths, config)
    if config.kind == "longrope":
        is_long = max_model_len > config.original_max_position_embeddings
        factors = config.long_factors if is_long else config.short_factors
        return 1.0 / (torch.tensor(factors, dtype=torch.float32) * wavelengths)
    return 1.0 / wavelengths


def _llama3(frequencies: Tensor, config: RopeConfig) -> Tensor:
    """Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between interpolated."""
    wavelengths = 2 * math.pi / frequencies  # [R / 2]
    turns = config.original_max_position_embeddings / wavelengths  # [R / 2]: full turns within the original context
    kept = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    share = kept.clamp(0.0, 1.0)  # [R / 2]: 0 is stretched, 1 is kept
    return (1 - share) * frequencies / config.factor + share * frequencies


def _yarn(frequencies: Tensor, config: RopeConfig) -> Tensor:
    """Peng et al. 2023: stretched below `beta_slow` turns within the original context, kept above `beta_fast`."""
    width = 2 * frequencies.shape[0]

    def index_of(turns: float) -> float:
        """The (fractional) index of the frequency that makes so many turns."""
        context = config.original_max_position_embeddings
        return width * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(config.theta))

    first, last = index_of(config.beta_fast), index_of(config.beta_slow)
    if config.truncate:
        first, last = math.floor(first), math.ceil(last)
    # The published bounds: the last index is clamped to the width, not to the count of frequencies.
    first, last = max(first, 0), min(last, width - 1)
    if first == last:
        last += 0.001  # the ramp becomes a step
    ramp = (torch.arange(frequencies.shape[0], dtype=torch.float32) - first) / (last - first)
    share = 1 - ramp.clamp(0.0, 1.0)  # [R / 2]: 0 is stretched, 1 is kept
    return (1 - share) * frequencies / config.factor + share * frequencies
