"""What an architecture implies and its `config.json` does not say: where transformers' classes differ. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from modelfleet_engine.config_fields import positive_integer
from modelfleet_engine.errors import ModelError
from modelfleet_engine.rope_config import DEFAULT_THETA

# Which layers see a sliding window: none, all, those from `max_window_layers` on, or all but every n-th.
WindowRule = Literal["none", "all", "upper", "pattern"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFamily:
    """One architecture's fixed choices; the neutral values are Llama's."""

    qkv_bias: bool | None = None  # None: as `attention_bias` says
    output_bias: bool | None = None
    qk_norm: bool = False
    fused_projections: bool = False  # the checkpoint holds qkv_proj and gate_up_proj
    partial_rotary: bool = False
    windows: WindowRule = "none"
    # Gemma: norms multiply by 1 + weight and also follow attention and MLP, embeddings are scaled by sqrt(H).
    is_gemma: bool = False
    local_rope: bool = False  # windowed layers rotate by frequencies of their own
    theta: float = DEFAULT_THETA
    # What transformers' configuration class holds where config.json has no such key.
    defaults: Mapping[str, Any]


_LLAMA_DEFAULTS: dict[str, Any] = {"hidden_act": "silu", "tie_word_embeddings": False, "rms_norm_eps": 1e-6}
_QWEN_DEFAULTS = _LLAMA_DEFAULTS | {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_GEMMA_DEFAULTS: dict[str, Any] = {
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}

FAMILIES: dict[str, ModelFamily] = {
    "LlamaForCausalLM": ModelFamily(defaults=_LLAMA_DEFAULTS),
    "MistralForCausalLM": ModelFamily(windows="all", defaults=_LLAMA_DEFAULTS | {"sliding_window": 4096}),
    # Qwen2 has biases on query, key and value alone, and does not say so in its config.
    "Qwen2ForCausalLM": ModelFamily(qkv_bias=True, output_bias=False, windows="upper", defaults=_QWEN_DEFAULTS),
    "Qwen3ForCausalLM": ModelFamily(qk_norm=True, windows="upper", defaults=_QWEN_DEFAULTS | {"head_dim": 128}),
    "Phi3ForCausalLM": ModelFamily(
        fused_projections=True,
        partial_rotary=True,
        windows="all",
        defaults=_LLAMA_DEFAULTS | {"rms_norm_eps": 1e-5},
    ),
    "Gemma2ForCausalLM": ModelFamily(
        is_gemma=True,
        windows="pattern",
        defaults=_GEMMA_DEFAULTS
        | {"sliding_window_pattern": 2, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "Gemma3ForCausalLM": ModelFamily(
        is_gemma=True,
        qk_norm=True,
        windows="pattern",
        local_rope=True,
        theta=1_000_000.0,
        defaults=_GEMMA_DEFAULTS | {"sliding_window_pattern": 6},
    ),
}
SUPPORTED_ARCHITECTURES = tuple(FAMILIES)


def find_architecture(raw: Mapping[str, Any]) -> str:
    """The first of `architectures` that is known.

    Raises:
        ModelError: none is; it names them and what is supported.
    """
    listed = raw.get("architectures") or []
    names = [str(name) for name in listed] if isinstance(listed, list) else [str(listed)]
    for name in names:
        if name in FAMILIES:
            return name
    given = ", ".join(names) or "none"
    raise ModelError(f"architecture {given} is not supported; supported: {', '.join(SUPPORTED_ARCHITECTURES)}")


def sliding_window(raw: Mapping[str, Any], family: ModelFamily) -> int | None:
    """The window of the sliding layers in tokens, the token itself included; None: they see everything.

    Raises:
        ModelError: it is no positive integer, or the architecture computes none.
    """
    default = family.defaults.get("sliding_window")
    is_off = family.windows == "upper" and not raw.get("use_sliding_window", family.defaults["use_sliding_window"])
    if is_off or raw.get("sliding_window", default) is None:
        return None
    window = positive_integer(raw, "sliding_window", default=default)
    if family.windows == "none":
        raise ModelError(f"sliding_window {window} is not supported for this architecture; supported: null")
    return window


def sliding_layers(raw: Mapping[str, Any], family: ModelFamily, *, layers: int) -> tuple[bool, ...]:
    """Which layers are sliding ones: as `layer_types` lists them, else by the architecture's rule.

    Raises:
        ModelError: the list is miscounted, names another kind, or contradicts an architecture whose layers are alike.
    """
    by_rule = _sliding_by_rule(raw, family, layers=layers)
    kinds = raw.get("layer_types")
    if kinds is None or family.windows == "none":
        return by_rule
    if not isinstance(kinds, list):
        raise ModelError(f"layer_types must name each layer full_attention or sliding_attention, got {kinds!r}")
    unknown = sorted({str(kind) for kind in kinds} - {"full_attention", "sliding_attention"})
    if unknown or len(kinds) != layers:
        given = f"{len(kinds)} for {layers} layers" + (f", among them {', '.join(unknown)}" if unknown else "")
        raise ModelError(f"layer_types must name each layer full_attention or sliding_attention, got {given}")
    listed = tuple(kind == "sliding_attention" for kind in kinds)
    # transformers ignores the list here: which of the two is meant?
    if family.windows == "all" and listed != by_rule and sliding_window(raw, family) is not None:
        raise ModelError("layer_types other than sliding_attention beside a sliding_window are not supported here")
    return listed


def _sliding_by_rule(raw: Mapping[str, Any], family: ModelFamily, *, layers: int) -> tuple[bool, ...]:
    if family.windows == "upper":
        default = family.defaults["max_window_layers"]
        # Zero is every layer.
        is_every = raw.get("max_window_layers") == 0
        first = 0 if is_every else positive_integer(raw, "max_window_layers", default=default)
        return tuple(index >= first for index in range(layers))
    if family.windows == "pattern":
        default = family.defaults["sliding_window_pattern"]
        period = positive_integer(raw, "sliding_window_pattern", default=default)
        return tuple((index + 1) % period != 0 for index in range(layers))
    return (family.windows == "all",) * layers
