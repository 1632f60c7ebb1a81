"""Rotary settings of a `config.json`, read into a frozen `RopeConfig`. No torch; frequencies are `models.rope`'s.

Both spellings are read: `rope_theta` with `rope_scaling`, and `rope_parameters` (transformers 5). What is left out gets
transformers' default.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from modelfleet_engine.errors import ModelError

RopeKind = Literal["default", "linear", "llama3", "yarn", "longrope"]
SUPPORTED_ROPE_TYPES: tuple[RopeKind, ...] = ("default", "linear", "llama3", "yarn", "longrope")
DEFAULT_THETA = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary embedding: base frequency and, for the scaled kinds, their parameters (neutral where unused)."""

    kind: RopeKind
    theta: float
    rotary_share: float = 1.0  # of each head's numbers, the first of them
    factor: float = 1.0
    original_max_position_embeddings: int = 0  # tokens
    # llama3
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    # yarn
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    # longrope: divisors of the frequencies, one for each
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    # yarn and longrope: multiplied into cosines and sines
    attention_factor: float = 1.0

    def rotary_width(self, head_dim: int) -> int:
        """How many of a head's numbers are rotated."""
        return int(head_dim * self.rotary_share)


def parse_rope(raw: Mapping[str, Any], *, settings: Mapping[str, Any], default_theta: float) -> RopeConfig:
    """The checked rotary settings `settings` of the whole configuration `raw`.

    Raises:
        ModelError: the kind is not supported, or a parameter it needs is missing or no number.
    """
    kind = settings.get("rope_type") or settings.get("type") or "default"
    # Phi-3 called longrope "su" at first.
    kind = "longrope" if kind == "su" else kind
    if kind not in SUPPORTED_ROPE_TYPES:
        raise ModelError(f"rope type {kind!r} is not supported; supported: {', '.join(SUPPORTED_ROPE_TYPES)}")
    parse = _PARAMETERS.get(cast(RopeKind, kind))
    try:
        rope = RopeConfig(
            kind=cast(RopeKind, kind),
            theta=float(settings.get("rope_theta") or raw.get("rope_theta") or default_theta),
            rotary_share=float(settings.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0),
            **(parse(settings, _original_positions(raw, settings), raw) if parse else {}),
        )
    except KeyError as error:
        raise ModelError(f"config.json: rope type {kind!r} needs {error.args[0]!r}") from error
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ModelError(f"config.json: rope type {kind!r} has a parameter that is no number: {error}") from error
    _check_numbers(rope)
    return rope


def _check_numbers(rope: RopeConfig) -> None:
    """All of them are positive and finite: others would give NaN for every logit, and an answer all the same."""
    for name, value in dataclasses.asdict(rope).items():
        values = value if isinstance(value, tuple) else (value,)
        wrong = [number for number in values if isinstance(number, float) and not 0 < number < math.inf]
        if wrong:
            raise ModelError(f"config.json: {name} of rope type {rope.kind!r} must be positive, got {wrong[0]}")


def stretched_positions(rope: RopeConfig, *, max_position_embeddings: int) -> int:
    """Tokens a model reaches with its scaling: with YaRN users leave `max_position_embeddings` at the original."""
    if rope.kind != "yarn":
        return max_position_embeddings
    return max(max_position_embeddings, int(rope.factor * rope.original_max_position_embeddings))


def _original_positions(raw: Mapping[str, Any], settings: Mapping[str, Any]) -> int:
    """What the model was trained with. Phi-3 says it beside the rotary settings, others within."""
    name = "original_max_position_embeddings"
    return int(raw.get(name) or settings.get(name) or raw["max_position_embeddings"])


def _linear(settings: Mapping[str, Any], _original: int, _raw: Mapping[str, Any]) -> dict[str, Any]:
    return {"factor": float(settings["factor"])}


def _llama3(settings: Mapping[str, Any], original: int, _raw: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "factor": float(settings["factor"]),
        "low_freq_factor": float(settings["low_freq_factor"]),
        "high_freq_factor": float(settings["high_freq_factor"]),
        "original_max_position_embeddings": original,
    }


def _yarn(settings: Mapping[str, Any], original: int, _raw: Mapping[str, Any]) -> dict[str, Any]:
    """Peng et al. 2023."""
    factor = float(settings["factor"])
    attention_factor = settings.get("attention_factor")
    if attention_factor is None:
        mscale, all_dimensions = settings.get("mscale"), settings.get("mscale_all_dim")
        if mscale and all_dimensions:
            attention_factor = _yarn_scale(factor, float(mscale)) / _yarn_scale(factor, float(all_dimensions))
        else:
            attention_factor = _yarn_scale(factor, 1.0)
    return {
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": float(settings.get("beta_fast") or 32.0),
        "beta_slow": float(settings.get("beta_slow") or 1.0),
        "truncate": bool(settings.get("truncate", True)),
        "attention_factor": float(attention_factor),
    }


def _yarn_scale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * weight * math.log(factor) + 1.0


def _longrope(settings: Mapping[str, Any], original: int, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Ding et al. 2024, with the attention factor of Phi-3."""
    factor = float(settings.get("factor") or raw["max_position_embeddings"] / original)
    attention_factor = settings.get("attention_factor")
    if attention_factor is None:
        attention_factor = 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(original))
    return {
        "factor": factor,
        "original_max_position_embeddings": original,
        "short_factors": tuple(float(value) for value in settings["short_factor"]),
        "long_factors": tuple(float(value) for value in settings["long_factor"]),
        "attention_factor": float(attention_factor),
    }


_Parameters = Callable[[Mapping[str, Any], int, Mapping[str, Any]], dict[str, Any]]
_PARAMETERS: dict[RopeKind, _Parameters] = {
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
