"""What `config.json` becomes, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from modelfleet_api.engine_config import EngineConfig
from modelfleet_engine.errors import ModelError
from modelfleet_engine.model_config import ModelConfig, RopeConfig, parse_model_config, read_model_config
from modelfleet_engine.model_loader import load_runner, resolve_dtype

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}


def test_a_minimal_llama_config_gets_the_format_s_defaults() -> None:
    assert parse_model_config(LLAMA) == ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=100,
        hidden_size=64,
        intermediate_size=128,
        layers=2,
        query_heads=4,
        kv_heads=4,
        head_dim=16,
        rms_norm_epsilon=1e-6,
        max_position_embeddings=512,
        rope=RopeConfig(kind="default", theta=10_000.0),
        tie_word_embeddings=False,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        checkpoint_dtype="float32",
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}},
    ],
)
def test_all_spellings_of_rotary_settings_mean_the_same(settings: dict[str, Any]) -> None:
    assert parse_model_config(LLAMA | settings).rope == RopeConfig(kind="linear", theta=5e5, factor=2.0)


def test_qwen2_has_biases_on_query_key_and_value_alone() -> None:
    config = parse_model_config(LLAMA | {"architectures": ["Qwen2ForCausalLM"]})
    assert (config.qkv_bias, config.output_bias, config.mlp_bias) == (True, False, False)


def test_a_window_that_is_switched_off_does_not_bound_the_length() -> None:
    windowed = LLAMA | {"sliding_window": 100}
    assert parse_model_config(windowed).max_position_embeddings == 100
    assert parse_model_config(windowed | {"use_sliding_window": False}).max_position_embeddings == 512


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "architecture MambaForCausalLM is not supported; supported: Llama"),
        ({"architectures": []}, "architecture none is not supported"),
        (
            {"architectures": ["MyForCausalLM"], "auto_map": {"AutoModelForCausalLM": "evil.MyForCausalLM"}},
            "architecture MyForCausalLM is not supported",
        ),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; supported: 'silu'"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantization_config \(awq\) is not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "rope type 'yarn' is not supported; supported: default"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4}}, "rope type 'llama3' needs 'low_freq_factor'"),
        ({"num_key_value_heads": 3}, "query heads must be a multiple of KV heads"),
        ({"head_dim": 15}, "head_dim even; got .* head_dim 15"),
        ({"hidden_size": None}, "hidden_size must be a positive integer, got None"),
        ({"vocab_size": "many"}, "vocab_size must be a positive integer, got 'many'"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        parse_model_config(LLAMA | change)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "holds no config.json"), ("{", "is not valid JSON"), ("[1]", "must hold a JSON object")],
)
def test_a_missing_or_broken_config_is_the_user_s_error(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=message):
        read_model_config(tmp_path)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="/nowhere does not exist"):
        read_model_config(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("requested", "checkpoint", "expected"),
    [
        ("auto", "float32", torch.float32),
        ("auto", "bfloat16", torch.bfloat16),
        ("auto", "float16", torch.bfloat16),
        ("float32", "bfloat16", torch.float32),
        ("bfloat16", "float32", torch.bfloat16),
    ],
)
def test_dtype_auto_is_the_checkpoint_s_and_float16_becomes_bfloat16(
    requested: str, checkpoint: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelfleet_engine.model_loader.cpu_computes_bfloat16", lambda: True)
    assert resolve_dtype(requested, checkpoint=checkpoint) is expected


def test_without_bfloat16_instructions_auto_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelfleet_engine.model_loader.cpu_computes_bfloat16", lambda: False)
    assert resolve_dtype("auto", checkpoint="bfloat16") is torch.float32
    assert resolve_dtype("bfloat16", checkpoint="bfloat16") is torch.bfloat16


def test_dtypes_the_cpu_cannot_serve_are_refused() -> None:
    with pytest.raises(ModelError, match="dtype float16 is not supported on cpu; supported: bfloat16, float32"):
        resolve_dtype("float16", checkpoint="float16")
    with pytest.raises(ModelError, match="checkpoint dtype 'float8_e4m3fn' is not supported"):
        resolve_dtype("auto", checkpoint="float8_e4m3fn")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"tensor_parallel": 2}, "tensor parallelism 2 is not"), ({"device": "cuda"}, "device cuda is not")],
)
def test_devices_this_engine_has_not_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(ModelError, match=message):
        load_runner(EngineConfig(model_path=str(tmp_path), served_model_name="m", **settings))
