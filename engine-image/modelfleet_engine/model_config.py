"""A Hugging Face `config.json` as a frozen `ModelConfig`; what cannot be computed exactly is refused by name.

What it leaves out gets transformers' default. `auto_map` (remote code) is never followed: an architecture is known
(`model_families`) or refused. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from modelfleet_engine.config_fields import positive_integer, positive_number, section
from modelfleet_engine.errors import ModelError
from modelfleet_engine.model_families import FAMILIES, ModelFamily, find_architecture, sliding_layers, sliding_window
from modelfleet_engine.rope_config import DEFAULT_THETA, RopeConfig, parse_rope, stretched_positions

Activation = Literal["silu", "gelu_tanh"]
_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerAttention:
    """What differs from layer to layer: how far it sees (tokens, itself included; None: all) and how it rotates."""

    window: int | None
    rope: RopeConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder with rotary embedding, RMS norms and a gated MLP; what `models.decoder` computes."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    layer_attention: tuple[LayerAttention, ...]  # one per layer
    attention_scale: float | None  # None: 1 / sqrt(head_dim)
    attention_soft_cap: float | None
    logit_soft_cap: float | None
    activation: Activation
    rms_norm_epsilon: float
    norms_add_one: bool  # they multiply by 1 + weight
    output_norms: bool  # attention and MLP are normed once more before they are added
    qk_norm: bool
    embedding_scale: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    fused_projections: bool  # qkv_proj and gate_up_proj in the checkpoint
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
    architecture = find_architecture(raw)
    family = FAMILIES[architecture]
    _refuse_unsupported(raw)
    layers, hidden_size = positive_integer(raw, "num_hidden_layers"), positive_integer(raw, "hidden_size")
    query_heads, kv_heads, head_dim = _head_geometry(raw, family, hidden_size=hidden_size)
    layer_attention = _layer_attention(raw, family, layers=layers)
    _check_rotation(layer_attention, family, head_dim=head_dim)
    has_attention_bias = bool(raw.get("attention_bias", False))
    return ModelConfig(
        architecture=architecture,
        vocab_size=positive_integer(raw, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=positive_integer(raw, "intermediate_size"),
        layers=layers,
        query_heads=query_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        layer_attention=layer_attention,
        attention_scale=_attention_scale(raw, family),
        attention_soft_cap=_soft_cap(raw, family, "attn_logit_softcapping"),
        logit_soft_cap=_soft_cap(raw, family, "final_logit_softcapping"),
        activation=_activation(raw, family),
        rms_norm_epsilon=_rms_norm_epsilon(raw, family),
        norms_add_one=family.is_gemma,
        output_norms=family.is_gemma,
        qk_norm=family.qk_norm,
        embedding_scale=hidden_size**0.5 if family.is_gemma else 1.0,
        max_position_embeddings=_max_positions(raw, layer_attention),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", family.defaults["tie_word_embeddings"])),
        fused_projections=family.fused_projections,
        qkv_bias=has_attention_bias if family.qkv_bias is None else family.qkv_bias,
        output_bias=has_attention_bias if family.output_bias is None else family.output_bias,
        mlp_bias=bool(raw.get("mlp_bias", False)),
        checkpoint_dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
    )


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    if quantization := section(raw, "quantization_config"):
        method = quantization.get("quant_method", "unknown")
        raise ModelError(f"quantization_config ({method}) is not supported; supported: unquantized safetensors")
    if raw.get("use_bidirectional_attention"):
        raise ModelError("use_bidirectional_attention is not supported; supported: false (a model that generates)")


def _head_geometry(raw: Mapping[str, Any], family: ModelFamily, *, hidden_size: int) -> tuple[int, int, int]:
    """Query heads, KV heads and head size."""
    query_heads = positive_integer(raw, "num_attention_heads")
    kv_heads = positive_integer(raw, "num_key_value_heads", default=query_heads)
    head_dim = positive_integer(raw, "head_dim", default=family.defaults.get("head_dim", hidden_size // query_heads))
    if query_heads % kv_heads or head_dim % 2:
        given = f"num_attention_heads {query_heads}, num_key_value_heads {kv_heads}, head_dim {head_dim}"
        raise ModelError(f"config.json: query heads must be a multiple of KV heads and head_dim even; got {given}")
    return query_heads, kv_heads, head_dim


def _layer_attention(raw: Mapping[str, Any], family: ModelFamily, *, layers: int) -> tuple[LayerAttention, ...]:
    window, is_sliding = sliding_window(raw, family), sliding_layers(raw, family, layers=layers)
    sliding_rope, full_rope = _ropes(raw, family)
    sliding = LayerAttention(window=window, rope=sliding_rope)
    full = LayerAttention(window=None, rope=full_rope)
    return tuple(sliding if slides else full for slides in is_sliding)


def _ropes(raw: Mapping[str, Any], family: ModelFamily) -> tuple[RopeConfig, RopeConfig]:
    """Those of sliding and of full layers: one and the same but in Gemma 3, in either of its spellings."""
    settings = section(raw, "rope_parameters") or section(raw, "rope_scaling")
    if not family.local_rope:
        rope = parse_rope(raw, settings=settings, default_theta=family.theta)
        return rope, rope
    is_nested = "full_attention" in settings or "sliding_attention" in settings
    full = section(settings, "full_attention") if is_nested else settings
    sliding = section(settings, "sliding_attention") if is_nested else {}
    local_theta = {"rope_theta": raw.get("rope_local_base_freq") or DEFAULT_THETA}
    return (
        parse_rope(raw, settings=local_theta | dict(sliding), default_theta=DEFAULT_THETA),
        parse_rope(raw, settings=full, default_theta=family.theta),
    )


def _check_rotation(layer_attention: tuple[LayerAttention, ...], family: ModelFamily, *, head_dim: int) -> None:
    """Every rotated width is even and has its factors; a share of the head only where the architecture has that."""
    for rope in {layer.rope for layer in layer_attention}:
        if rope.rotary_share != 1.0 and not family.partial_rotary:
            raise ModelError(f"partial_rotary_factor {rope.rotary_share} is not supported here; supported: 1.0")
        width = rope.rotary_width(head_dim)
        if width % 2 or not 0 < width <= head_dim:
            raise ModelError(f"partial_rotary_factor {rope.rotary_share} of head_dim {head_dim} is no even part of it")
        for name, factors in (("short_factor", rope.short_factors), ("long_factor", rope.long_factors)):
            if rope.kind == "longrope" and len(factors) != width // 2:
                raise ModelError(f"config.json: {name} must hold {width // 2} numbers, got {len(factors)}")


def _attention_scale(raw: Mapping[str, Any], family: ModelFamily) -> float | None:
    if "query_pre_attn_scalar" not in family.defaults:
        return None
    default = float(family.defaults["query_pre_attn_scalar"])
    return float((positive_number(raw, "query_pre_attn_scalar", default=default) or default) ** -0.5)


def _rms_norm_epsilon(raw: Mapping[str, Any], family: ModelFamily) -> float:
    default = float(family.defaults["rms_norm_eps"])
    return positive_number(raw, "rms_norm_eps", default=default) or default


def _soft_cap(raw: Mapping[str, Any], family: ModelFamily, name: str) -> float | None:
    return positive_number(raw, name, default=family.defaults.get(name)) if family.is_gemma else None


def _activation(raw: Mapping[str, Any], family: ModelFamily) -> Activation:
    name = "hidden_activation" if family.is_gemma else "hidden_act"
    given = raw.get(name) or family.defaults[name]
    if not isinstance(given, str) or given not in _ACTIVATIONS:
        raise ModelError(f"{name} {given!r} is not supported; supported: {', '.join(map(repr, _ACTIVATIONS))}")
    return _ACTIVATIONS[given]


def _max_positions(raw: Mapping[str, Any], layer_attention: tuple[LayerAttention, ...]) -> int:
    maximum = positive_integer(raw, "max_position_embeddings")
    return max(stretched_positions(layer.rope, max_position_embeddings=maximum) for layer in layer_attention)
