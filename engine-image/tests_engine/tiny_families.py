"""Tiny random models of every supported family and feature, for comparison with transformers in float32.

Windows and original contexts are shorter than the sequences of the tests: a feature nobody reaches is not tested.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# With heads of 32 the ramp between stretched and kept frequencies covers four of the sixteen.
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "beta_fast": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.0, 2.0, 4.0],
}
# Its defaults lie outside the tiny vocabulary.
PHI3_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PHI3_LONG: dict[str, Any] = {
    "family": "Phi3",
    "sliding_window": 40,
    "original_max_position_embeddings": 64,
    "rope_parameters": LONGROPE,
    **PHI3_TOKENS,
}
# An attention scale that is not the head's.
GEMMA3: dict[str, Any] = {
    "family": "Gemma3",
    "head_dim": 8,
    "query_pre_attn_scalar": 20,
    "sliding_window": 9,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    },
}

# What `model_fixtures.write_random_model` is called with.
FAMILIES: dict[str, dict[str, Any]] = {
    "plain Llama": {"family": "Llama"},
    "Llama with every bias and untied head": {
        "family": "Llama",
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": False,
    },
    "Llama with a tied head and its own head size": {
        "family": "Llama",
        "tie_word_embeddings": True,
        "head_dim": 10,
    },
    "Llama without grouped heads": {"family": "Llama", "num_key_value_heads": 6, "rms_norm_eps": 1e-3},
    "llama3 rotary scaling": {"family": "Llama", "rope_parameters": LLAMA3_ROPE},
    "linear rotary scaling": {
        "family": "Llama",
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
    },
    "yarn rotary scaling": {"family": "Llama", "head_dim": 32, "rope_parameters": YARN_ROPE},
    "Mistral without a window": {"family": "Mistral", "sliding_window": None},
    "Mistral with a window": {"family": "Mistral", "sliding_window": 16},
    "Qwen2 with a tied head": {"family": "Qwen2", "tie_word_embeddings": True},
    "Qwen2 with a window in its upper layers": {
        "family": "Qwen2",
        "use_sliding_window": True,
        "sliding_window": 11,
        "max_window_layers": 1,
    },
    "Qwen3": {"family": "Qwen3", "head_dim": 12},
    "Phi-3": {"family": "Phi3"} | PHI3_TOKENS,
    "Phi-3 with longrope, a window and partial rotation": PHI3_LONG,
    # Caps small enough to bend scores and logits.
    "Gemma 2": {
        "family": "Gemma2",
        "head_dim": 10,
        "query_pre_attn_scalar": 5,
        "sliding_window": 13,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 4.0,
    },
    "Gemma 3": GEMMA3,
}
# Every sequence of the tests fits, prompt and output.
REFERENCE_TOKENS = 176


def prompt_of(length: int, *, variant: int = 0) -> tuple[int, ...]:
    """Deterministic token ids of the tiny vocabulary."""
    return tuple((7 * index * index + 3 * index + length + 11 * variant) % 131 for index in range(length))


def transformers_logits(
    model: Any, sequences: list[tuple[int, ...]], *, pad_to: int = REFERENCE_TOKENS
) -> list[Tensor]:
    """The logits after each token of each sequence, [tokens, V] float32.

    Padded at the end, which no earlier token sees: so transformers chooses LongRoPE's long factors, as an engine does
    that may serve sequences beyond the original context.
    """
    padded = torch.zeros((len(sequences), pad_to), dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = torch.tensor(sequence)
    with torch.inference_mode():
        logits = model(padded).logits.float()
    return [logits[row, : len(sequence)] for row, sequence in enumerate(sequences)]
