"""One decoder layer's packed weights and how they are read from a checkpoint in Hugging Face's naming.

Query, key and value are one product, gate and up another: fewer and larger calls.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from modelfleet_kernels import Kernels, PackedLinear
from torch import Tensor

from modelfleet_engine.model_config import ModelConfig
from modelfleet_engine.weights import Weights


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecoderLayer:
    """Packed weights of one layer. H hidden size, I intermediate size."""

    input_norm: Tensor  # [H]
    qkv: PackedLinear  # H -> (Hq + 2 Hkv) D
    output: PackedLinear  # Hq D -> H
    post_attention_norm: Tensor  # [H]
    gate_up: PackedLinear  # H -> 2 I
    down: PackedLinear  # I -> H


def load_decoder_layer(config: ModelConfig, weights: Weights, kernels: Kernels, *, index: int) -> DecoderLayer:
    """Reads layer `index`; the checkpoint's own tensors are not kept."""
    prefix = f"model.layers.{index}"
    hidden, inner = config.hidden_size, config.intermediate_size
    query_width, kv_width = config.query_heads * config.head_dim, config.kv_heads * config.head_dim
    attention = [
        (f"{prefix}.self_attn.q_proj", query_width),
        (f"{prefix}.self_attn.k_proj", kv_width),
        (f"{prefix}.self_attn.v_proj", kv_width),
    ]
    mlp = [(f"{prefix}.mlp.gate_proj", inner), (f"{prefix}.mlp.up_proj", inner)]
    loader = _LinearLoader(weights=weights, kernels=kernels)
    return DecoderLayer(
        input_norm=weights.take(f"{prefix}.input_layernorm.weight", hidden).clone(),
        qkv=loader.load(attention, in_features=hidden, bias=config.qkv_bias),
        output=loader.load([(f"{prefix}.self_attn.o_proj", hidden)], in_features=query_width, bias=config.output_bias),
        post_attention_norm=weights.take(f"{prefix}.post_attention_layernorm.weight", hidden).clone(),
        gate_up=loader.load(mlp, in_features=hidden, bias=config.mlp_bias),
        down=loader.load([(f"{prefix}.mlp.down_proj", hidden)], in_features=inner, bias=config.mlp_bias),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _LinearLoader:
    weights: Weights
    kernels: Kernels

    def load(self, parts: list[tuple[str, int]], *, in_features: int, bias: bool) -> PackedLinear:
        """Concatenates the outputs of `parts` (name, out features) into one packed product."""
        take = self.weights.take
        weight = torch.cat([take(f"{name}.weight", rows, in_features) for name, rows in parts])  # [O, K]
        bias_row = torch.cat([take(f"{name}.bias", rows) for name, rows in parts]) if bias else None  # [O]
        return self.kernels.pack_linear(weight, bias_row)
