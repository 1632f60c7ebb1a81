"""A decoder's layers as one call of the library."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from modelfleet_kernels.cpu.library import DecoderStruct, LayerStruct, RopeStruct, StepStruct, library
from modelfleet_kernels.cpu.limits import require_indices
from modelfleet_kernels.cpu.linear import ACTIVATION_CODES, array, struct_of, this_team
from modelfleet_kernels.cpu.prepared import memory_of, own
from modelfleet_kernels.types import DecoderLayer, DecoderStack, PreparedBatch, RopeTables


class CpuDecoder:
    """See `types.FusedDecoder`. The residual is kept in float32."""

    def __init__(self, stack: DecoderStack) -> None:
        self._norms: list[Tensor] = []  # float32 copies that the structs point to
        self._stack = stack  # keeps the packed weights that the structs point to
        form, first = stack.layers[0].attention, stack.layers[0]
        self._layers = array([self._layer(layer) for layer in stack.layers])
        self._struct = DecoderStruct(
            hidden=first.qkv.in_features,
            intermediate=first.down.in_features,
            query_heads=stack.query_heads,
            kv_heads=stack.kv_heads,
            head_dim=stack.head_dim,
            activation=ACTIVATION_CODES[stack.activation],
            layer_count=len(stack.layers),
            epsilon=stack.epsilon,
            attention_scale=form.scale_of(stack.head_dim),
            soft_cap=form.soft_cap or 0.0,
            final_norm=self._norm(stack.final_norm),
            layers=ctypes.addressof(self._layers),
        )

    def __call__(
        self,
        embedded: Tensor,
        kv_layers: Sequence[Tensor],
        prepared: PreparedBatch,
        ropes: Sequence[RopeTables],
        output_tokens: Tensor,
    ) -> Tensor:
        """embedded [T, H] -> [R, H]."""
        batch, outputs = own(prepared), output_tokens.contiguous()
        require_indices("output tokens", outputs, count=batch.tokens)
        self._struct.block_tokens = batch.block_tokens
        residual = embedded.to(torch.float32, copy=True).contiguous()  # [T, H]
        hidden = embedded.new_empty((outputs.shape[0], embedded.shape[1]))  # [R, H]
        tables = [(rope.cos.contiguous(), rope.signed_sin.contiguous()) for rope in ropes]
        turns = array([RopeStruct(cos.data_ptr(), sin.data_ptr(), cos.shape[-1]) for cos, sin in tables])
        caches = (ctypes.c_void_p * len(kv_layers))(*(memory_of(cache, batch) for cache in kv_layers))
        step = StepStruct(
            batch=batch.struct,
            residual=residual.data_ptr(),
            ropes=ctypes.addressof(turns),
            caches=ctypes.addressof(caches),
            outputs=outputs.data_ptr(),
            output_count=outputs.shape[0],
            hidden=hidden.data_ptr(),
        )
        library().modelfleet_run_decoder(this_team(), self._struct, step)
        return hidden

    def _layer(self, layer: DecoderLayer) -> LayerStruct:
        return LayerStruct(
            qkv=struct_of(layer.qkv),
            output=struct_of(layer.output),
            gate_up=struct_of(layer.gate_up),
            down=struct_of(layer.down),
            input_norm=self._norm(layer.input_norm),
            query_norm=self._norm(layer.query_norm),
            key_norm=self._norm(layer.key_norm),
            output_norm=self._norm(layer.output_norm),
            mlp_norm=self._norm(layer.mlp_norm),
            mlp_output_norm=self._norm(layer.mlp_output_norm),
            window=layer.attention.window or 0,
            rope=layer.rope,
        )

    def _norm(self, weight: Tensor | None) -> int | None:
        if weight is None:
            return None
        self._norms.append(weight.float().contiguous())
        return self._norms[-1].data_ptr()
