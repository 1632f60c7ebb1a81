"""Any value in any place of a `config.json` is read or refused as the user's error, never a crash like a bug's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from modelfleet_engine.errors import ModelError
from modelfleet_engine.model_config import parse_model_config

from tests_engine.test_model_config import family

# Every field that a family reads, at its neutral value.
WHOLE: dict[str, dict[str, Any]] = {
    "Llama": {
        "rope_scaling": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8,
            "low_freq_factor": 1,
            "high_freq_factor": 4,
            "original_max_position_embeddings": 64,
        },
        "quantization_config": {},
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "bfloat16",
    },
    "Qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    | {"layer_types": ["full_attention"] * 6, "rope_scaling": {"rope_type": "yarn", "factor": 8, "mscale": 1}},
    "Phi3": {"original_max_position_embeddings": 32, "partial_rotary_factor": 0.75}
    | {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 6, "long_factor": [2.0] * 6}},
    "Gemma3": {"sliding_window": 4, "sliding_window_pattern": 2, "head_dim": 8, "query_pre_attn_scalar": 8}
    | {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}}
    | {"final_logit_softcapping": 3.0, "hidden_activation": "gelu_pytorch_tanh"},
}
ODD_VALUES: tuple[Any, ...] = (None, 0, -1, 1.5, True, "x", "", [], [None], {}, math.nan, math.inf, -math.inf)


def with_odd_values(raw: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Copies of `raw`, each with another value in one place, nested objects' included."""
    for name, value in raw.items():
        yield from (raw | {name: odd} for odd in ODD_VALUES)
        if isinstance(value, dict):
            yield from (raw | {name: changed} for changed in with_odd_values(value))


@pytest.mark.parametrize("name", WHOLE)
def test_whatever_stands_in_a_config_it_is_read_or_the_user_s_error(name: str) -> None:
    raw = family(name) | {"rms_norm_eps": 1e-5, "hidden_act": "silu", "num_key_value_heads": 2} | WHOLE[name]
    parse_model_config(raw)
    refused = 0
    for changed in with_odd_values(raw):
        try:
            parse_model_config(changed)
        except ModelError:
            refused += 1
    assert refused > 60
