"""What a Llama-like model costs: bytes per step, arithmetic per token, bytes per cached token: read from its files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

BYTES_PER_BFLOAT16 = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Sizes of a bfloat16 model; the embedding table counts once where input and output share it."""

    weights_bytes: int
    kv_bytes_per_token: int
    # Multiplications and additions of the linear layers; attention is left out, the output head too: a prompt needs
    # it once.
    prefill_flops_per_token: int


def read_model_facts(directory: Path) -> ModelFacts:
    """Reads config.json and the sizes of the weight files."""
    config = json.loads((directory / "config.json").read_text())
    weights_bytes = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    embeddings = config["vocab_size"] * config["hidden_size"] * (1 if config["tie_word_embeddings"] else 2)
    return ModelFacts(
        weights_bytes=weights_bytes,
        kv_bytes_per_token=(
            2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_dim * BYTES_PER_BFLOAT16
        ),
        prefill_flops_per_token=2 * (weights_bytes // BYTES_PER_BFLOAT16 - embeddings),
    )
