"""A Hugging Face `config.json` as a frozen `ModelConfig`; what cannot be computed exactly is refused by name.

Both spellings of rotary settings are read: `rope_theta` with `rope_scaling`, and `rope_parameters` (transformers 5).
`auto_map` (remote code) is never followed: an architecture is known here or refused. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from modelfleet_engine.errors import ModelError

SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
SUPPORTED_ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary embedding: base frequency and, for the scaled kinds, their parameters (neutral where unused)."""

    kind: Literal["default", "linear", "llama3"]
    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder of the Llama family. `max_position_embeddings` is already bounded by a sliding window, if any."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    rms_norm_epsilon: float
    max_position_embeddings: int
    rope: RopeConfig
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    checkpoint_dtype: str


def read_model_config(model_path: Path) -> ModelConfig:
    """Reads and checks `config.json`.

    Raises:
        ModelError: it is missing, broken, or asks for something unsupported (named, with what is supported).
    """
    if not model_path.is_dir():
        raise ModelError(f"model directory {model_path} does not exist")
    try:
        raw = json.loads((model_path / "config.json").read_text())
    except FileNotFoundError:
        raise ModelError(f"model directory {model_path} holds no config.json") from None
    except ValueError as error:
        raise ModelError(f"{model_path / 'config.json'} is not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{model_path / 'config.json'} must hold a JSON object")
    return parse_model_config(raw)


def parse_model_config(raw: Mapping[str, Any]) -> ModelConfig:
    """The checked configuration; see `read_model_config`."""
    architecture = _architecture(raw)
    _refuse_unsupported(raw)
    hidden_size, query_heads = _integer(raw, "hidden_size"), _integer(raw, "num_attention_heads")
    kv_heads = _integer(raw, "num_key_value_heads", default=query_heads)
    head_dim = _integer(raw, "head_dim", default=hidden_size // query_heads)
    if query_heads % kv_heads or head_dim % 2:
        given = f"num_attention_heads {query_heads}, num_key_value_heads {kv_heads}, head_dim {head_dim}"
        raise ModelError(f"config.json: query heads must be a multiple of KV heads and head_dim even; got {given}")
    is_qwen2 = architecture == "Qwen2ForCausalLM"
    attention_bias = bool(raw.get("attention_bias", False))
    return ModelConfig(
        architecture=architecture,
        vocab_size=_integer(raw, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_integer(raw, "intermediate_size"),
        layers=_integer(raw, "num_hidden_layers"),
        query_heads=query_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_epsilon=float(raw.get("rms_norm_eps", 1e-6)),
        max_position_embeddings=_max_positions(raw),
        rope=_rope(raw),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        # Qwen2 has biases on query, key and value alone, and does not say so in its config.
        qkv_bias=is_qwen2 or attention_bias,
        output_bias=attention_bias and not is_qwen2,
        mlp_bias=bool(raw.get("mlp_bias", False)),
        checkpoint_dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
    )


def _architecture(raw: Mapping[str, Any]) -> str:
    names = raw.get("architectures") or []
    for name in names:
        if name in SUPPORTED_ARCHITECTURES:
            return str(name)
    given = ", ".join(map(str, names)) or "none"
    raise ModelError(f"architecture {given} is not supported; supported: {', '.join(SUPPORTED_ARCHITECTURES)}")


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    if raw.get("quantization_config"):
        method = dict(raw["quantization_config"]).get("quant_method", "unknown")
        raise ModelError(f"quantization_config ({method}) is not supported; supported: unquantized safetensors")
    activation = raw.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelError(f"hidden_act {activation!r} is not supported; supported: 'silu'")
    rotary_factor = raw.get("partial_rotary_factor", 1.0)
    if rotary_factor not in (None, 1, 1.0):
        raise ModelError(f"partial_rotary_factor {rotary_factor} is not supported; supported: 1.0")


def _max_positions(raw: Mapping[str, Any]) -> int:
    """Within its sliding window a model's attention is plain causal attention, so the window bounds the length."""
    maximum = _integer(raw, "max_position_embeddings")
    window = raw.get("sliding_window")
    # Qwen2 carries a window that is off unless it says otherwise; Mistral's is on wherever it is set.
    is_windowed = window is not None and bool(raw.get("use_sliding_window", True))
    return min(maximum, int(window)) if is_windowed and window is not None else maximum


def _rope(raw: Mapping[str, Any]) -> RopeConfig:
    scaling: Mapping[str, Any] = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = float(scaling.get("rope_theta") or raw.get("rope_theta") or 10_000.0)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if scaling.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise ModelError(f"partial_rotary_factor {scaling['partial_rotary_factor']} is not supported; supported: 1.0")
    if kind == "default":
        return RopeConfig(kind="default", theta=theta)
    try:
        if kind == "linear":
            return RopeConfig(kind="linear", theta=theta, factor=float(scaling["factor"]))
        if kind == "llama3":
            return RopeConfig(
                kind="llama3",
                theta=theta,
                factor=float(scaling["factor"]),
                low_freq_factor=float(scaling["low_freq_factor"]),
                high_freq_factor=float(scaling["high_freq_factor"]),
                original_max_position_embeddings=int(scaling["original_max_position_embeddings"]),
            )
    except KeyError as error:
        raise ModelError(f"config.json: rope type {kind!r} needs {error.args[0]!r}") from error
    raise ModelError(f"rope type {kind!r} is not supported; supported: {', '.join(SUPPORTED_ROPE_TYPES)}")


def _integer(raw: Mapping[str, Any], name: str, *, default: int | None = None) -> int:
    value = raw.get(name)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"config.json: {name} must be a positive integer, got {raw.get(name)!r}")
    return value
