"""The decoder of the Llama family, driven by `ModelConfig`: Llama 2 and 3, SmolLM2, Mistral, Qwen2.

Knows tensors of one step, not requests: which rows sample and which blocks they own comes prepared.
"""

from __future__ import annotations

from collections.abc import Sequence

from modelfleet_kernels import Kernels, PreparedBatch
from torch import Tensor, nn

from modelfleet_engine.model_config import ModelConfig
from modelfleet_engine.models.layers import load_decoder_layer
from modelfleet_engine.models.rope import RotaryEmbedding
from modelfleet_engine.weights import Weights


class DecoderModel:
    """Weights packed once, then `forward` and `logits` per step.

    T tokens, R output rows, H hidden size, V vocabulary.
    """

    def __init__(self, config: ModelConfig, weights: Weights, kernels: Kernels) -> None:
        self._config = config
        self._kernels = kernels
        self._rotary = RotaryEmbedding(config.rope, head_dim=config.head_dim, dtype=weights.dtype)
        table = weights.take("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
        self._embedding = table.clone()  # [V, H]
        self._layers = [load_decoder_layer(config, weights, kernels, index=index) for index in range(config.layers)]
        self._final_norm = weights.take("model.norm.weight", config.hidden_size).clone()  # [H]
        is_tied = config.tie_word_embeddings
        head = table if is_tied else weights.take("lm_head.weight", config.vocab_size, config.hidden_size)
        self._lm_head = kernels.pack_linear(head)

    @property
    def windows(self) -> frozenset[int | None]:
        """Those its layers attend with: what a batch must be prepared for."""
        return frozenset((None,))

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
        rope = self._rotary.tables(positions)
        residual = nn.functional.embedding(token_ids, self._embedding)  # [T, H]
        hidden = kernels.rms_norm(residual, self._layers[0].input_norm, epsilon=epsilon)  # [T, H]
        last = len(self._layers) - 1
        for index, (layer, kv_cache) in enumerate(zip(self._layers, kv_layers, strict=True)):
            qkv = kernels.linear(hidden, layer.qkv)  # [T, (Hq + 2 Hkv) D]
            query = kernels.rope_write_kv(qkv, kv_cache, prepared, rope)  # [T, Hq, D]
            attended = kernels.paged_attention(query, kv_cache, prepared)  # [T, Hq D]
            if index == last:
                attended, residual = attended[output_tokens], residual[output_tokens]  # [R, ...]
            projected = kernels.linear(attended, layer.output)  # [T, H]
            hidden = kernels.add_rms_norm(projected, residual, layer.post_attention_norm, epsilon=epsilon)
            inner = kernels.silu_mul(kernels.linear(hidden, layer.gate_up))  # [T, I]
            next_norm = self._final_norm if index == last else self._layers[index + 1].input_norm
            hidden = kernels.add_rms_norm(kernels.linear(inner, layer.down), residual, next_norm, epsilon=epsilon)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, H] as `forward` answers it -> logits [R, V] float32, the caller's own to overwrite."""
        return self._kernels.linear(hidden, self._lm_head).float()
