"""What `config.json` becomes, and what is refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from modelfleet_api.engine_config import EngineConfig
from modelfleet_engine.errors import ModelError
from modelfleet_engine.model_config import LayerAttention, ModelConfig, parse_model_config, read_model_config
from modelfleet_engine.model_families import SUPPORTED_ARCHITECTURES
from modelfleet_engine.model_loader import load_runner, resolve_dtype
from modelfleet_engine.rope_config import RopeConfig

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}


PLAIN_ROPE = RopeConfig(kind="default", theta=10_000.0)


def family(name: str, **settings: Any) -> dict[str, Any]:
    """LLAMA as another architecture, with 6 layers."""
    return LLAMA | {"architectures": [f"{name}ForCausalLM"], "num_hidden_layers": 6} | settings


def windows(raw: dict[str, Any]) -> list[int | None]:
    """Each layer's."""
    return [layer.window for layer in parse_model_config(raw).layer_attention]


def rope(raw: dict[str, Any]) -> RopeConfig:
    """That of all layers."""
    (only,) = {layer.rope for layer in parse_model_config(raw).layer_attention}
    return only


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
        layer_attention=(LayerAttention(window=None, rope=PLAIN_ROPE),) * 2,
        attention_scale=None,
        attention_soft_cap=None,
        logit_soft_cap=None,
        activation="silu",
        rms_norm_epsilon=1e-6,
        norms_add_one=False,
        output_norms=False,
        qk_norm=False,
        embedding_scale=1.0,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        fused_projections=False,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        checkpoint_dtype="float32",
    )


def test_a_minimal_gemma3_config_gets_the_format_s_defaults() -> None:
    local = LayerAttention(window=4096, rope=PLAIN_ROPE)
    everything = LayerAttention(window=None, rope=RopeConfig(kind="default", theta=1_000_000.0))
    assert parse_model_config(family("Gemma3", num_hidden_layers=7)) == ModelConfig(
        architecture="Gemma3ForCausalLM",
        vocab_size=100,
        hidden_size=64,
        intermediate_size=128,
        layers=7,
        query_heads=4,
        kv_heads=4,
        head_dim=256,
        layer_attention=(*(local,) * 5, everything, local),
        attention_scale=0.0625,
        attention_soft_cap=None,
        logit_soft_cap=None,
        activation="gelu_tanh",
        rms_norm_epsilon=1e-6,
        norms_add_one=True,
        output_norms=True,
        qk_norm=True,
        embedding_scale=8.0,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        fused_projections=False,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        checkpoint_dtype="float32",
    )


def test_gemma2_has_soft_caps_unless_they_are_null() -> None:
    config = parse_model_config(family("Gemma2"))
    assert (config.attention_soft_cap, config.logit_soft_cap, config.qk_norm) == (50.0, 30.0, False)
    config = parse_model_config(family("Gemma2", attn_logit_softcapping=None, final_logit_softcapping=None))
    assert (config.attention_soft_cap, config.logit_soft_cap) == (None, None)


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}},
    ],
)
def test_all_spellings_of_rotary_settings_mean_the_same(settings: dict[str, Any]) -> None:
    assert rope(LLAMA | settings) == RopeConfig(kind="linear", theta=5e5, factor=2.0)


@pytest.mark.parametrize(
    "settings",
    [
        {
            "rope_theta": 1e6,
            "rope_local_base_freq": 500.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "sliding_window_pattern": 2,
        },
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
            "layer_types": ["sliding_attention", "full_attention"] * 3,
        },
    ],
    ids=["older", "nested"],
)
def test_both_spellings_of_gemma3_s_two_kinds_of_layers_mean_the_same(settings: dict[str, Any]) -> None:
    local = LayerAttention(window=4, rope=RopeConfig(kind="default", theta=500.0))
    everything = LayerAttention(window=None, rope=RopeConfig(kind="linear", theta=1e6, factor=8.0))
    config = parse_model_config(family("Gemma3", sliding_window=4, **settings))
    assert config.layer_attention == (local, everything) * 3


YARN = {"rope_type": "yarn", "factor": 4.0}
PHI_FACTORS = {"short_factor": [1.0] * 6, "long_factor": [2.0] * 6}


def test_yarn_stretches_the_context_and_derives_its_attention_factor() -> None:
    stretched = parse_model_config(LLAMA | {"rope_scaling": YARN})
    assert stretched.max_position_embeddings == 2048
    assert stretched.layer_attention[0].rope == RopeConfig(
        kind="yarn",
        theta=10_000.0,
        factor=4.0,
        original_max_position_embeddings=512,
        attention_factor=1.1386294361119891,
    )
    # Already said in the config: the original context is a quarter of the whole.
    said = parse_model_config(LLAMA | {"rope_scaling": YARN | {"original_max_position_embeddings": 128}})
    assert said.max_position_embeddings == 512
    assert rope(LLAMA | {"rope_scaling": YARN | {"attention_factor": 0.5}}).attention_factor == 0.5
    scaled = rope(LLAMA | {"rope_scaling": YARN | {"mscale": 2.0, "mscale_all_dim": 1.0}})
    assert scaled.attention_factor == pytest.approx(1.2772588722239782 / 1.1386294361119891)


@pytest.mark.parametrize("kind", ["longrope", "su"])
def test_phi3_s_longrope_reads_the_original_context_beside_the_rotary_settings(kind: str) -> None:
    raw = family(
        "Phi3",
        original_max_position_embeddings=128,
        partial_rotary_factor=0.75,
        rope_scaling={"type": kind} | PHI_FACTORS,
    )
    assert rope(raw) == RopeConfig(
        kind="longrope",
        theta=10_000.0,
        rotary_share=0.75,
        factor=4.0,
        original_max_position_embeddings=128,
        short_factors=(1.0,) * 6,
        long_factors=(2.0,) * 6,
        # sqrt(1 + ln 4 / ln 128)
        attention_factor=1.1338934190276817,
    )


def test_qwen2_has_biases_on_query_key_and_value_alone() -> None:
    config = parse_model_config(family("Qwen2"))
    assert (config.qkv_bias, config.output_bias, config.mlp_bias) == (True, False, False)


def test_qwen_s_window_is_off_unless_switched_on_and_then_spares_the_lower_layers() -> None:
    for name in ("Qwen2", "Qwen3"):
        raw = family(name, sliding_window=100, max_window_layers=4, head_dim=16)
        assert windows(raw) == [None] * 6
        assert windows(raw | {"use_sliding_window": True}) == [None] * 4 + [100] * 2
        assert windows(raw | {"use_sliding_window": True, "max_window_layers": 0}) == [100] * 6
        listed = ["full_attention", "sliding_attention"] * 3
        assert windows(raw | {"use_sliding_window": True, "layer_types": listed}) == [None, 100] * 3


def test_a_window_leaves_the_length_as_it_is() -> None:
    config = parse_model_config(family("Mistral", sliding_window=100))
    assert [layer.window for layer in config.layer_attention] == [100] * 6
    assert config.max_position_embeddings == 512
    assert windows(family("Mistral", sliding_window=None)) == [None] * 6
    assert windows(family("Mistral")) == [4096] * 6
    assert windows(family("Phi3", sliding_window=7)) == [7] * 6
    assert windows(family("Gemma2", sliding_window=8)) == [8, None] * 3


def test_each_supported_architecture_parses_with_nothing_but_its_sizes() -> None:
    assert [parse_model_config(LLAMA | {"architectures": [name]}).architecture for name in SUPPORTED_ARCHITECTURES] == [
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "Phi3ForCausalLM",
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "architecture MambaForCausalLM is not supported; supported: Llama"),
        ({"architectures": []}, "architecture none is not supported"),
        (
            {"architectures": ["MyForCausalLM"], "auto_map": {"AutoModelForCausalLM": "evil.MyForCausalLM"}},
            "architecture MyForCausalLM is not supported",
        ),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; supported: 'silu', 'gelu_pytorch_tanh'"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantization_config \(awq\) is not supported"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is not supported; supported: false"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported here; supported: 1.0"),
        ({"sliding_window": 100}, "sliding_window 100 is not supported for this architecture; supported: null"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4}}, "rope type 'dynamic' is not supported; supported: d"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4}}, "rope type 'llama3' needs 'low_freq_factor'"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope type 'yarn' needs 'factor'"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1]}}, "rope type 'longrope' needs 'long_factor'"),
        ({"rope_scaling": {"rope_type": "longrope"} | PHI_FACTORS}, "short_factor must hold 8 numbers, got 6"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "two"}}, "'linear' has a parameter that is no number"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": math.nan}},
            "factor of rope type 'linear' must be positive",
        ),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 0}},
            "factor of rope type 'linear' must be positive, got 0.0",
        ),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object, got 'linear'"),
        ({"rope_theta": -5}, "theta of rope type 'default' must be positive, got -5.0"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be a positive number or null, got 'small'"),
        ({"rms_norm_eps": math.inf}, "rms_norm_eps must be a positive number or null, got inf"),
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
    ("name", "change", "message"),
    [
        ("Phi3", {"partial_rotary_factor": 0.7}, "partial_rotary_factor 0.7 of head_dim 16 is no even part of it"),
        ("Phi3", {"partial_rotary_factor": 1.5}, "partial_rotary_factor 1.5 of head_dim 16 is no even part of it"),
        ("Gemma2", {"hidden_activation": "gelu"}, "hidden_activation 'gelu' is not supported"),
        (
            "Gemma2",
            {"final_logit_softcapping": -1},
            "final_logit_softcapping must be a positive number or null, got -1",
        ),
        ("Gemma3", {"layer_types": ["full_attention"]}, "layer_types must name each layer .*, got 1 for 6 layers"),
        ("Gemma3", {"layer_types": ["chunked_attention"] * 6}, "got 6 for 6 layers, among them chunked_attention"),
        ("Gemma3", {"sliding_window_pattern": 0}, "sliding_window_pattern must be a positive integer, got 0"),
        ("Mistral", {"layer_types": ["full_attention"] * 6}, "layer_types other than sliding_attention"),
        ("Qwen2", {"max_window_layers": "some"}, "max_window_layers must be a positive integer, got 'some'"),
        ("Mistral", {"sliding_window": "wide"}, "sliding_window must be a positive integer, got 'wide'"),
    ],
)
def test_what_a_family_cannot_compute_is_refused_by_name(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        parse_model_config(family(name) | change)


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
