"""Tiny random models of every supported family and feature: logits equal transformers' in float32."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from modelfleet_api.engine_config import EngineConfig
from modelfleet_engine.model_loader import LoadedRunner, load_runner
from modelfleet_engine.step_plan import ScheduledSequence, StepPlan
from modelfleet_kernels import available_backends
from torch import Tensor

from tests_engine.model_fixtures import GREEDY, write_random_model
from tests_engine.tiny_families import (
    FAMILIES,
    GEMMA3,
    LLAMA3_ROPE,
    PHI3_LONG,
    prompt_of,
    transformers_logits,
)

# Largest difference of two float32 logits, whose largest are about 3; measured: at most 4.4e-6.
MAX_LOGIT_ERROR = 2e-5
PROMPT_LENGTHS = (1, 2, 31, 77)


@pytest.fixture(scope="module", params=FAMILIES)
def tiny_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A directory and the transformers model saved there."""
    directory = tmp_path_factory.mktemp("tiny")
    return directory, write_random_model(directory, **FAMILIES[request.param])


def load(model_dir: Path, **settings: Any) -> LoadedRunner:
    """A runner, in float32 and with blocks of 8 tokens unless the settings say otherwise."""
    sizes = {"block_tokens": 8, "max_num_batched_tokens": 48, "kv_cache_bytes": 4 << 20}
    config = EngineConfig(model_path=str(model_dir), served_model_name="tiny", **sizes | settings)
    return load_runner(config)


def row_of(tokens: tuple[int, ...], *, slot: int = 0, start: int = 0) -> ScheduledSequence:
    """A row that computes `tokens` and samples greedily, with blocks for 160 tokens of its own."""
    return ScheduledSequence(
        slot=slot,
        token_ids=tokens,
        input_from_previous_step=False,
        start_position=start,
        block_table=tuple(range(20 * slot, 20 * slot + 20)),
        sampling=GREEDY,
    )


def last_logits(loaded: LoadedRunner, prompt: tuple[int, ...]) -> Tensor:
    """After the prompt's last token, [V]."""
    return loaded.runner.logits(StepPlan(step_id=0, sequences=(row_of(prompt),)))[0]


def error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference."""
    return float((actual - expected).abs().max())


FLOAT32_BACKENDS = ("torch_cpu", "reference")


@pytest.mark.parametrize("backend", FLOAT32_BACKENDS)
def test_logits_of_a_mixed_batch_equal_transformers(tiny_model: tuple[Path, Any], backend: str) -> None:
    model_dir, reference = tiny_model
    runner = load(model_dir, kernel_backend=backend).runner
    prompts = [prompt_of(length) for length in PROMPT_LENGTHS]
    # All but the last token of each prompt first, in uneven pieces, so that the compared step mixes all kinds of rows.
    cuts = [0, 1, 20, 50]
    chunks = [row_of(prompts[index][:cut], slot=index) for index, cut in enumerate(cuts) if cut]
    runner.logits(StepPlan(step_id=0, sequences=tuple(chunks)))
    rest = [row_of(prompts[index][cut:], slot=index, start=cut) for index, cut in enumerate(cuts)]
    logits = runner.logits(StepPlan(step_id=1, sequences=tuple(rest)))
    expected = torch.stack([rows[-1] for rows in transformers_logits(reference, prompts)])
    assert error(logits, expected) < MAX_LOGIT_ERROR
    # The models are no constants: another token, another answer.
    assert error(logits[0], expected[1]) > 1.0


def older_rope(config: dict[str, Any]) -> None:
    """transformers 4: the base beside the scaling, and the dtype's older name."""
    scaling = config.pop("rope_parameters")
    config["rope_theta"] = scaling.pop("rope_theta")
    config["rope_scaling"] = scaling
    config["torch_dtype"] = config.pop("dtype")


def older_phi3(config: dict[str, Any]) -> None:
    """The first Phi-3 checkpoints: longrope as "su", the rotated share beside it."""
    older_rope(config)
    config["partial_rotary_factor"] = config["rope_scaling"].pop("partial_rotary_factor")
    config["rope_scaling"]["type"] = "su"
    del config["rope_scaling"]["rope_type"]


def older_gemma3(config: dict[str, Any]) -> None:
    """Gemma 3's own checkpoints: two bases, one scaling, and a period instead of a list of layers."""
    ropes = config.pop("rope_parameters")
    config["rope_theta"] = ropes["full_attention"].pop("rope_theta")
    config["rope_local_base_freq"] = ropes["sliding_attention"]["rope_theta"]
    config["rope_scaling"] = ropes["full_attention"]
    del config["layer_types"]
    config["sliding_window_pattern"] = 2


@pytest.mark.parametrize(
    ("settings", "rewrite"),
    [
        ({"family": "Llama", "rope_parameters": LLAMA3_ROPE}, older_rope),
        (PHI3_LONG, older_phi3),
        (GEMMA3, older_gemma3),
    ],
    ids=["Llama", "Phi-3", "Gemma 3"],
)
def test_the_older_spelling_of_a_config_gives_the_same_logits(
    tmp_path: Path, settings: dict[str, Any], rewrite: Callable[[dict[str, Any]], None]
) -> None:
    reference = write_random_model(tmp_path, **settings)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    rewrite(config)
    path.write_text(json.dumps(config))
    prompt = prompt_of(77)
    (expected,) = transformers_logits(reference, [prompt])
    assert error(last_logits(load(tmp_path), prompt), expected[-1]) < MAX_LOGIT_ERROR


def test_longrope_s_factors_are_those_of_the_longest_sequence_the_engine_may_serve(tmp_path: Path) -> None:
    reference = write_random_model(tmp_path, **PHI3_LONG)
    prompt = prompt_of(60)
    (long,) = transformers_logits(reference, [prompt])
    (short,) = transformers_logits(reference, [prompt], pad_to=64)
    assert error(last_logits(load(tmp_path), prompt), long[-1]) < MAX_LOGIT_ERROR
    assert error(last_logits(load(tmp_path, max_model_len=65), prompt), long[-1]) < MAX_LOGIT_ERROR
    assert error(last_logits(load(tmp_path, max_model_len=64), prompt), short[-1]) < MAX_LOGIT_ERROR
    assert error(long[-1], short[-1]) > 0.5


@pytest.mark.parametrize("backend", available_backends("cpu"))
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_loses_no_more_than_transformers_does(tmp_path: Path, family: str, backend: str) -> None:
    reference = write_random_model(tmp_path, **with_heads_of_16(FAMILIES[family]))
    prompts = [prompt_of(77, variant=variant) for variant in range(8)]
    exact = torch.stack([rows[-1] for rows in transformers_logits(reference, prompts)])
    theirs = torch.stack([rows[-1] for rows in transformers_logits(reference.bfloat16(), prompts)])
    runner = load(tmp_path, kernel_backend=backend, dtype="bfloat16", block_tokens=16).runner
    # Uneven first chunks, so that the compared step holds single tokens, short and long rows.
    cuts = [0, 1, 20, 50, 64, 75, 76, 76]
    pairs = list(enumerate(zip(prompts, cuts, strict=True)))
    chunks = [row_of(prompt[:cut], slot=slot) for slot, (prompt, cut) in pairs if cut]
    runner.logits(StepPlan(step_id=0, sequences=tuple(chunks)))
    rest = [row_of(prompt[cut:], slot=slot, start=cut) for slot, (prompt, cut) in pairs]
    ours = runner.logits(StepPlan(step_id=1, sequences=tuple(rest)))
    assert rms(ours - exact) <= 1.25 * rms(theirs - exact)


def with_heads_of_16(settings: dict[str, Any]) -> dict[str, Any]:
    """The family in sizes that every backend computes."""
    changed = settings | {"hidden_size": 96, "intermediate_size": 96}
    if "head_dim" in settings:
        changed["head_dim"] = max(16, settings["head_dim"] // 16 * 16)
    rope = settings.get("rope_parameters", {})
    if rope.get("rope_type") == "longrope":
        factors = {name: [value for value in rope[name] for _ in range(2)] for name in ("short_factor", "long_factor")}
        changed["rope_parameters"] = rope | factors
    return changed


def rms(values: Tensor) -> float:
    """Root of the mean square."""
    return float(values.square().mean().sqrt())
