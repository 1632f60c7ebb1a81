"""One decoder layer's packed weights and how they are read from a checkpoint in Hugging Face's naming.

Query, key and value are one product, gate and up another: fewer and larger calls.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from modelfleet_kernels import AttentionForm, DecoderLayer, Kernels, PackedLinear
from torch import Tensor

from modelfleet_engine.model_config import ModelConfig
from modelfleet_engine.weights import Weights


def load_decoder_layer(
    config: ModelConfig, weights: Weights, kernels: Kernels, *, index: int, rope: int
) -> DecoderLayer:
    """Reads layer `index`, which rotates by tables `rope`; the checkpoint's own tensors are not kept."""
    prefix = f"model.layers.{index}"
    loader = _LayerLoader(config=config, weights=weights, kernels=kernels, prefix=prefix)
    norm, optional_norm = loader.norm, loader.optional_norm
    hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    query_width = config.query_heads * head_dim
    has_output_norms = config.output_norms
    # With norms on the outputs the older name is that of attention's, and the MLP's input has a name of its own.
    mlp_norm = "pre_feedforward_layernorm" if has_output_norms else "post_attention_layernorm"
    return DecoderLayer(
        attention=AttentionForm(
            scale=config.attention_scale,
            window=config.layer_attention[index].window,
            soft_cap=config.attention_soft_cap,
            large_offset=config.qkv_bias,
        ),
        rope=rope,
        input_norm=norm("input_layernorm", hidden),
        qkv=loader.linear(loader.qkv_parts(), in_features=hidden, bias=config.qkv_bias),
        query_norm=optional_norm("self_attn.q_norm", head_dim, present=config.qk_norm),
        key_norm=optional_norm("self_attn.k_norm", head_dim, present=config.qk_norm),
        output=loader.linear([("self_attn.o_proj", hidden)], in_features=query_width, bias=config.output_bias),
        output_norm=optional_norm("post_attention_layernorm", hidden, present=has_output_norms),
        mlp_norm=norm(mlp_norm, hidden),
        gate_up=loader.linear(loader.gate_up_parts(), in_features=hidden, bias=config.mlp_bias, is_gated=True),
        down=loader.linear([("mlp.down_proj", hidden)], in_features=inner, bias=config.mlp_bias),
        mlp_output_norm=optional_norm("post_feedforward_layernorm", hidden, present=has_output_norms),
    )


def load_norm(config: ModelConfig, weights: Weights, name: str, width: int) -> Tensor:
    """The norm's factor [width]. 1 + weight is kept in float32, as transformers computes it: see `Kernels.rms_norm`."""
    if not config.norms_add_one:
        return weights.take(name, width).clone()
    return 1.0 + weights.take(name, width, dtype=torch.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class _LayerLoader:
    config: ModelConfig
    weights: Weights
    kernels: Kernels
    prefix: str

    def qkv_parts(self) -> list[tuple[str, int]]:
        """The products that give query, key and value: name and out features."""
        query_width = self.config.query_heads * self.config.head_dim
        kv_width = self.config.kv_heads * self.config.head_dim
        if self.config.fused_projections:
            return [("self_attn.qkv_proj", query_width + 2 * kv_width)]
        return [("self_attn.q_proj", query_width), ("self_attn.k_proj", kv_width), ("self_attn.v_proj", kv_width)]

    def gate_up_parts(self) -> list[tuple[str, int]]:
        """The products that give gate and up."""
        inner = self.config.intermediate_size
        if self.config.fused_projections:
            return [("mlp.gate_up_proj", 2 * inner)]
        return [("mlp.gate_proj", inner), ("mlp.up_proj", inner)]

    def linear(
        self, parts: list[tuple[str, int]], *, in_features: int, bias: bool, is_gated: bool = False
    ) -> PackedLinear:
        """Concatenates the outputs of `parts` into one packed product."""
        take, prefix = self.weights.take, self.prefix
        weight = torch.cat([take(f"{prefix}.{name}.weight", rows, in_features) for name, rows in parts])  # [O, K]
        bias_row = torch.cat([take(f"{prefix}.{name}.bias", rows) for name, rows in parts]) if bias else None  # [O]
        pack = self.kernels.pack_gated_linear if is_gated else self.kernels.pack_linear
        return pack(weight, bias_row)

    def norm(self, name: str, width: int) -> Tensor:
        """[width]."""
        return load_norm(self.config, self.weights, f"{self.prefix}.{name}.weight", width)

    def optional_norm(self, name: str, width: int, *, present: bool) -> Tensor | None:
        """[width], or None where the architecture has none."""
        return self.norm(name, width) if present else None
