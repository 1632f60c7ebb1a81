"""Small random decoders for tests of fused ones, and the definition: the same layers op by op in float32."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from modelfleet_kernels import AttentionForm, DecoderLayer, DecoderStack, Kernels, PreparedBatch, RopeTables
from torch import Tensor

HIDDEN, INNER = 70, 48


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """What varies between decoders."""

    query_heads: int = 6
    kv_heads: int = 2
    head_dim: int = 16
    forms: tuple[AttentionForm, ...] = (AttentionForm(), AttentionForm(window=5))
    has_biases: bool = False
    has_head_norms: bool = False
    has_output_norm: bool = False
    has_mlp_output_norm: bool = False


def make_stack(kernels: Kernels, shape: Shape, *, dtype: torch.dtype) -> DecoderStack:
    """The same bfloat16 numbers for every backend and dtype."""
    generator = torch.Generator().manual_seed(5)

    def numbers(*size: int, offset: float = 0.0) -> Tensor:
        drawn = torch.randn(size, generator=generator) / (size[-1] ** 0.5 if len(size) > 1 else 4)
        return (offset + drawn).bfloat16().to(dtype)

    def norm(width: int, *, present: bool = True) -> Tensor | None:
        row = numbers(width, offset=1.0)
        return row if present else None

    def weights(outputs: int, inputs: int) -> tuple[Tensor, Tensor | None]:
        weight, bias = numbers(outputs, inputs), numbers(outputs)
        return weight, bias if shape.has_biases else None

    def layer(form: AttentionForm) -> DecoderLayer:
        query_width, kv_width = shape.query_heads * shape.head_dim, shape.kv_heads * shape.head_dim
        return DecoderLayer(
            attention=form,
            rope=0,
            input_norm=numbers(HIDDEN, offset=1.0),
            qkv=kernels.pack_linear(*weights(query_width + 2 * kv_width, HIDDEN)),
            query_norm=norm(shape.head_dim, present=shape.has_head_norms),
            key_norm=norm(shape.head_dim, present=shape.has_head_norms),
            output=kernels.pack_linear(*weights(HIDDEN, query_width)),
            output_norm=norm(HIDDEN, present=shape.has_output_norm),
            mlp_norm=numbers(HIDDEN, offset=1.0),
            gate_up=kernels.pack_gated_linear(*weights(2 * INNER, HIDDEN)),
            down=kernels.pack_linear(*weights(HIDDEN, INNER)),
            mlp_output_norm=norm(HIDDEN, present=shape.has_mlp_output_norm),
        )

    return DecoderStack(
        layers=[layer(form) for form in shape.forms],
        final_norm=numbers(HIDDEN, offset=1.0),
        activation="gelu_tanh",
        epsilon=1e-6,
        query_heads=shape.query_heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
    )


def run_op_by_op(
    kernels: Kernels,
    stack: DecoderStack,
    embedded: Tensor,
    caches: Sequence[Tensor],
    prepared: PreparedBatch,
    rope: RopeTables,
) -> Tensor:
    """embedded [T, H] -> normed hidden states of every token [T, H]."""

    def normed(rows: Tensor, weight: Tensor | None) -> Tensor:
        return rows if weight is None else kernels.rms_norm(rows, weight, epsilon=stack.epsilon)

    tokens, heads = embedded.shape[0], stack.query_heads + stack.kv_heads
    residual = embedded.clone()
    for layer, cache in zip(stack.layers, caches, strict=True):
        qkv = kernels.linear(normed(residual, layer.input_norm), layer.qkv).view(tokens, -1, stack.head_dim)
        qkv[:, : stack.query_heads] = normed(qkv[:, : stack.query_heads], layer.query_norm)
        qkv[:, stack.query_heads : heads] = normed(qkv[:, stack.query_heads : heads], layer.key_norm)
        query = kernels.rope_write_kv(qkv.view(tokens, -1), cache, prepared, rope)
        attended = kernels.paged_attention(query, cache, prepared, layer.attention)
        residual = residual + normed(kernels.linear(attended, layer.output), layer.output_norm)
        inner = kernels.gated_linear(normed(residual, layer.mlp_norm), layer.gate_up, stack.activation)
        residual = residual + normed(kernels.linear(inner, layer.down), layer.mlp_output_norm)
    return normed(residual, stack.final_norm)
