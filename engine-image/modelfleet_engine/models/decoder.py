"""The decoder of every supported family, driven by `ModelConfig`: grouped-query attention, gated MLP, RMS norms.

Knows tensors of one step, not requests: which rows give output and which blocks they own comes prepared.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from modelfleet_kernels import Kernels, PreparedBatch, RopeTables
from torch import Tensor, nn

from modelfleet_engine.model_config import ModelConfig
from modelfleet_engine.models.layers import DecoderLayer, load_decoder_layer, load_norm
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
        self._gate = kernels.silu_mul if config.activation == "silu" else kernels.gelu_mul
        ropes = list(dict.fromkeys(layer.rope for layer in config.layer_attention))
        self._rope_of_layer = [ropes.index(layer.rope) for layer in config.layer_attention]
        self._rotaries = [
            RotaryEmbedding(rope, head_dim=config.head_dim, max_model_len=max_model_len, dtype=weights.dtype)
            for rope in ropes
        ]
        table = weights.take("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
        self._embedding = _scaled(table, config.embedding_scale)  # [V, H]
        self._layers = [load_decoder_layer(config, weights, kernels, index=index) for index in range(config.layers)]
        self._final_norm = load_norm(config, weights, "model.norm.weight", config.hidden_size)  # [H]
        is_tied = config.tie_word_embeddings
        head = table if is_tied else weights.take("lm_head.weight", config.vocab_size, config.hidden_size)
        self._lm_head = kernels.pack_linear(head)

    @property
    def windows(self) -> frozenset[int | None]:
        """Those its layers attend with: what a batch must be prepared for."""
        return frozenset(layer.attention.window for layer in self._layers)

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
        kernels, epsilon = self._kernels, self._config.rms_norm_epsilon
        tables = [rotary.tables(positions) for rotary in self._rotaries]
        residual = nn.functional.embedding(token_ids, self._embedding)  # [T, H]
        hidden = kernels.rms_norm(residual, self._layers[0].input_norm, epsilon=epsilon)  # [T, H]
        last = len(self._layers) - 1
        for index, (layer, kv_cache) in enumerate(zip(self._layers, kv_layers, strict=True)):
            attended = self._attend(hidden, layer, kv_cache, prepared, tables[self._rope_of_layer[index]])  # [T, Hq D]
            if index == last:
                attended, residual = attended[output_tokens], residual[output_tokens]  # [R, ...]
            projected = kernels.linear(attended, layer.output)  # [T, H]
            if layer.output_norm is not None:
                projected = kernels.rms_norm(projected, layer.output_norm, epsilon=epsilon)
            hidden = kernels.add_rms_norm(projected, residual, layer.mlp_norm, epsilon=epsilon)
            inner = self._gate(kernels.linear(hidden, layer.gate_up))  # [T, I]
            projected = kernels.linear(inner, layer.down)  # [T, H]
            if layer.mlp_output_norm is not None:
                projected = kernels.rms_norm(projected, layer.mlp_output_norm, epsilon=epsilon)
            next_norm = self._final_norm if index == last else self._layers[index + 1].input_norm
            hidden = kernels.add_rms_norm(projected, residual, next_norm, epsilon=epsilon)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, H] as `forward` answers it -> logits [R, V] float32, the caller's own to overwrite."""
        logits = self._kernels.linear(hidden, self._lm_head).float()
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


def _scaled(table: Tensor, scale: float) -> Tensor:
    """A copy of `table` [V, H] times `scale`, which transformers rounds to the model's dtype first."""
    return table.clone() if scale == 1.0 else table * torch.tensor(scale, dtype=table.dtype)
