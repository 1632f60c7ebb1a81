"""Tiny random models of every supported family and feature: logits equal transformers' in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from modelfleet_api.engine_config import EngineConfig
from modelfleet_engine.device import ThreadDevice
from modelfleet_engine.model_loader import LoadedRunner, load_runner
from modelfleet_engine.step_plan import ScheduledSequence, StepPlan
from modelfleet_kernels import available_backends
from torch import Tensor

from tests_engine.model_fixtures import GREEDY, DrivenSequence, drive, write_random_model

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
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
    "Qwen2": {"family": "Qwen2", "tie_word_embeddings": True},
    "Mistral": {"family": "Mistral", "sliding_window": None},
}
PROMPT_LENGTHS = (1, 2, 31, 77)


@pytest.fixture(params=FAMILIES)
def tiny_model(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any]:
    """A directory and the transformers model saved there."""
    settings = FAMILIES[request.param]
    return tmp_path, write_random_model(tmp_path, **settings)


def load(model_dir: Path, **settings: Any) -> LoadedRunner:
    """A float32 runner with blocks of 8 tokens."""
    backend = settings.pop("backend", None)
    config = EngineConfig(
        model_path=str(model_dir),
        served_model_name="tiny",
        block_tokens=8,
        max_num_batched_tokens=48,
        kv_cache_bytes=4 << 20,
        **settings,
    )
    return load_runner(config, backend=backend)


def prompt_of(length: int) -> tuple[int, ...]:
    """Deterministic token ids."""
    return tuple((7 * index * index + 3 * index + length) % 131 for index in range(length))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest magnitude."""
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("backend", available_backends("cpu"))
def test_logits_of_a_mixed_batch_equal_transformers(tiny_model: tuple[Path, Any], backend: str) -> None:
    model_dir, reference = tiny_model
    runner = load(model_dir, backend=backend).runner
    prompts = [prompt_of(length) for length in PROMPT_LENGTHS]
    tables = [tuple(range(10 * index, 10 * index + 10)) for index in range(4)]
    # All but the last token of each prompt first, in uneven pieces, so that the compared step mixes all kinds of rows.
    cuts = [0, 1, 20, 50]
    chunks = [
        row_of(prompts[index][:cut], slot=index, start=0, table=tables[index]) for index, cut in enumerate(cuts) if cut
    ]
    runner.logits(StepPlan(step_id=0, sequences=tuple(chunks)))
    rest = [row_of(prompts[index][cut:], slot=index, start=cut, table=tables[index]) for index, cut in enumerate(cuts)]
    logits = runner.logits(StepPlan(step_id=1, sequences=tuple(rest)))
    with torch.inference_mode():
        expected = torch.stack([reference(torch.tensor([prompt])).logits[0, -1] for prompt in prompts])
    assert relative_error(logits, expected) < 1e-4
    # The models are no constants: another token, another answer.
    assert relative_error(logits[0], expected[1]) > 0.1


def row_of(tokens: tuple[int, ...], *, slot: int, start: int, table: tuple[int, ...]) -> ScheduledSequence:
    """A row that computes `tokens` and samples greedily."""
    return ScheduledSequence(
        slot=slot,
        token_ids=tokens,
        input_from_previous_step=False,
        start_position=start,
        block_table=table,
        sampling=GREEDY,
    )


def test_generation_one_step_ahead_equals_transformers_greedy_output(tiny_model: tuple[Path, Any]) -> None:
    model_dir, reference = tiny_model
    loaded = load(model_dir)
    device = ThreadDevice(loaded.runner.run)
    sequences = [DrivenSequence(prompt=prompt_of(length), output_tokens=6) for length in PROMPT_LENGTHS]
    try:
        drive(device, sequences, block_tokens=8, kv_blocks=loaded.cache.blocks, budget=24)
    finally:
        device.close()
    for sequence in sequences:
        first = len(sequence.prompt) - 1
        with torch.inference_mode():
            logits = reference(torch.tensor([[*sequence.prompt, *sequence.outputs]])).logits[0]
        # Each output is transformers' own next token after the ones before it, so the whole is its greedy output.
        assert sequence.outputs == logits[first:-1].argmax(dim=-1).tolist()


def test_the_older_spelling_of_rotary_settings_gives_the_same_logits(tmp_path: Path) -> None:
    reference = write_random_model(tmp_path, family="Llama", rope_parameters=LLAMA3_ROPE)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    scaling = config.pop("rope_parameters")
    config["rope_theta"] = scaling.pop("rope_theta")
    config["rope_scaling"] = scaling
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config))
    prompt = prompt_of(77)
    row = row_of(prompt, slot=0, start=0, table=tuple(range(10)))
    logits = load(tmp_path).runner.logits(StepPlan(step_id=0, sequences=(row,)))
    with torch.inference_mode():
        assert relative_error(logits[0], reference(torch.tensor([prompt])).logits[0, -1]) < 1e-4


def test_a_sliding_window_bounds_the_length_within_which_attention_is_plain(tmp_path: Path) -> None:
    reference = write_random_model(tmp_path, family="Mistral", sliding_window=64)
    loaded = load(tmp_path)
    assert loaded.cache.max_model_len == 64
    prompt = prompt_of(64)
    logits = loaded.runner.logits(
        StepPlan(step_id=0, sequences=(row_of(prompt, slot=0, start=0, table=tuple(range(8))),))
    )
    with torch.inference_mode():
        assert relative_error(logits[0], reference(torch.tensor([prompt])).logits[0, -1]) < 1e-4
