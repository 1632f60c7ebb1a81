"""The decoder of every supported family, driven by `ModelConfig`: grouped-query attention, gated MLP, RMS norms.

Knows tensors of one step, not requests: which rows give output and which blocks they own comes prepared.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from modelfleet_kernels import DecoderLayer, DecoderStack, Kernels, PreparedBatch, RopeTables
from torch import Tensor, nn

from modelfleet_engine.model_config import ModelConfig
from modelfleet_engine.models.layers import load_decoder_layer, load_norm
from modelfleet_engine.models.rope import RotaryEmbedding
from modelfleet_engine.weights import Weights


class DecoderModel:
    """Weights packed once, then `forward` and `logits` per step.

    T tokens, R output rows, H hidden size, V vocabulary. `max_model_len`: the longest sequence that may come, in
    tokens (`RotaryEmbedding` says what depends on it).
    """

    def __init__(self, config: ModelConfig, weights: Weights, kernels: Kernels, *, max_model_len: int) -> None:
        self._config = config
        self._kernels = kernels
        ropes = list(dict.fromkeys(layer.rope for layer in config.layer_attention))
        self._rotaries = [
            RotaryEmbedding(rope, head_dim=config.head_dim, max_model_len=max_model_len, dtype=weights.dtype)
            for rope in ropes
        ]
        self._stack = DecoderStack(
            layers=[
                load_decoder_layer(config, weights, kernels, index=index, rope=ropes.index(layer.rope))
                for index, layer in enumerate(config.layer_attention)
            ],
            final_norm=load_norm(config, weights, "model.norm.weight", config.hidden_size),
            activation=config.activation,
            epsilon=config.rms_norm_epsilon,
            query_heads=config.query_heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
        )
        self._fused = kernels.fuse(self._stack)
        self._load_vocabulary(weights)

    def _load_vocabulary(self, weights: Weights) -> None:
        """The embedding and the head; one packed weight for both where they are tied and the backend reads it back."""
        config, kernels = self._config, self._kernels
        # Rounded to the model's dtype first, as transformers does.
        self._embedding_scale = float(torch.tensor(config.embedding_scale, dtype=weights.dtype))
        table = weights.take("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
        is_tied = config.tie_word_embeddings
        head = table if is_tied else weights.take("lm_head.weight", config.vocab_size, config.hidden_size)
        self._lm_head = kernels.pack_linear(head)
        is_shared = is_tied and kernels.weight_rows(self._lm_head, torch.zeros(1, dtype=torch.int64)) is not None
        self._embedding = None if is_shared else table.clone()  # [V, H]

    @property
    def windows(self) -> frozenset[int | None]:
        """Those its layers attend with: what a batch must be prepared for."""
        return frozenset(layer.attention.window for layer in self._stack.layers)

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        kv_layers: Sequence[Tensor],
        prepared: PreparedBatch,
        *,
        output_tokens: Tensor,
    ) -> Tensor:
        """token_ids and positions [T] int64, one KV cache per layer, output_tokens [R] int64 -> hidden [R, H].

        Writes the step's keys and values. Only `output_tokens` go through the last MLP and the final norm.
        """
        tables = [rotary.tables(positions) for rotary in self._rotaries]
        embedded = self._embed(token_ids)  # [T, H]
        if self._fused is not None:
            return self._fused(embedded, kv_layers, prepared, tables, output_tokens)
        return self._run_layers(embedded, kv_layers, prepared, tables, output_tokens)

    def _embed(self, token_ids: Tensor) -> Tensor:
        """[T] -> [T, H], the caller's own to overwrite."""
        if self._embedding is None:
            embedded = self._kernels.weight_rows(self._lm_head, token_ids)
            assert embedded is not None, "the head was found readable when it was packed"
        else:
            embedded = nn.functional.embedding(token_ids, self._embedding)
        return embedded if self._embedding_scale == 1.0 else embedded.mul_(self._embedding_scale)

    def _run_layers(
        self,
        residual: Tensor,
        kv_layers: Sequence[Tensor],
        prepared: PreparedBatch,
        tables: Sequence[RopeTables],
        output_tokens: Tensor,
    ) -> Tensor:
        """residual [T, H], overwritten -> [R, H], op by op."""
        kernels, stack, epsilon = self._kernels, self._stack, self._stack.epsilon
        hidden = kernels.rms_norm(residual, stack.layers[0].input_norm, epsilon=epsilon)  # [T, H]
        last = len(stack.layers) - 1
        for index, (layer, kv_cache) in enumerate(zip(stack.layers, kv_layers, strict=True)):
            attended = self._attend(hidden, layer, kv_cache, prepared, tables[layer.rope])  # [T, Hq D]
            if index == last:
                attended, residual = attended[output_tokens], residual[output_tokens]  # [R, ...]
            projected = kernels.linear(attended, layer.output)  # [T, H]
            if layer.output_norm is not None:
                projected = kernels.rms_norm(projected, layer.output_norm, epsilon=epsilon)
            hidden = kernels.add_rms_norm(projected, residual, layer.mlp_norm, epsilon=epsilon)
            inner = kernels.gated_linear(hidden, layer.gate_up, stack.activation)  # [T, I]
            projected = kernels.linear(inner, layer.down)  # [T, H]
            if layer.mlp_output_norm is not None:
                projected = kernels.rms_norm(projected, layer.mlp_output_norm, epsilon=epsilon)
            next_norm = stack.final_norm if index == last else stack.layers[index + 1].input_norm
            hidden = kernels.add_rms_norm(projected, residual, next_norm, epsilon=epsilon)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, H] as `forward` answers it -> logits [R, V] float32, the caller's own to overwrite."""
        logits = self._kernels.linear_float32(hidden, self._lm_head)
        soft_cap = self._config.logit_soft_cap
        return logits if soft_cap is None else logits.div_(soft_cap).tanh_().mul_(soft_cap)

    def _attend(
        self, hidden: Tensor, layer: DecoderLayer, kv_cache: Tensor, prepared: PreparedBatch, rope: RopeTables
    ) -> Tensor:
        """hidden [T, H] -> [T, Hq D]."""
        kernels, config = self._kernels, self._config
        qkv = kernels.linear(hidden, layer.qkv)  # [T, (Hq + 2 Hkv) D]
        if layer.query_norm is not None and layer.key_norm is not None:
            heads = qkv.view(qkv.shape[0], -1, config.head_dim)  # [T, Hq + 2 Hkv, D]
            query = heads[:, : config.query_heads]  # [T, Hq, D]
            key = heads[:, config.query_heads : config.query_heads + config.kv_heads]  # [T, Hkv, D]
            kernels.rms_norm(query, layer.query_norm, epsilon=config.rms_norm_epsilon, out=query)
            kernels.rms_norm(key, layer.key_norm, epsilon=config.rms_norm_epsilon, out=key)
        rotated = kernels.rope_write_kv(qkv, kv_cache, prepared, rope)  # [T, Hq, D]
        return kernels.paged_attention(rotated, kv_cache, prepared, layer.attention)
