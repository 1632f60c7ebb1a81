"""Checkpoints: single file and shards, and everything that is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from modelfleet_api.engine_config import EngineConfig
from modelfleet_engine.errors import ModelError
from modelfleet_engine.model_loader import load_runner
from modelfleet_engine.step_plan import ScheduledSequence, StepPlan
from modelfleet_engine.weights import open_weights
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests_engine.model_fixtures import GREEDY, write_random_model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in one file; tests copy it before they change it."""
    directory = tmp_path_factory.mktemp("model")
    write_random_model(directory, family="Llama")
    return directory


@pytest.fixture
def copied(model_dir: Path, tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A directory with the config alone, and the tensors."""
    (tmp_path / "config.json").write_text((model_dir / "config.json").read_text())
    return tmp_path, load_file(model_dir / "model.safetensors")


def logits_of(directory: Path) -> Tensor:
    """The answer to one prompt, [1, V]."""
    config = EngineConfig(model_path=str(directory), served_model_name="m", kv_cache_bytes=1 << 20)
    row = ScheduledSequence(
        slot=0,
        token_ids=(5, 6, 7),
        input_from_previous_step=False,
        start_position=0,
        block_table=(0,),
        sampling=GREEDY,
    )
    return load_runner(config).runner.logits(StepPlan(step_id=0, sequences=(row,)))


def write_shards(directory: Path, tensors: dict[str, Tensor], *, shards: int) -> None:
    """As transformers writes them, with an index."""
    names: list[list[str]] = [sorted(tensors)[first::shards] for first in range(shards)]
    weight_map: dict[str, str] = {}
    for number, members in enumerate(names, start=1):
        file_name = f"model-{number:05}-of-{shards:05}.safetensors"
        save_file({name: tensors[name] for name in members}, directory / file_name)
        weight_map |= dict.fromkeys(members, file_name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_with_an_index_give_the_logits_of_the_single_file(
    model_dir: Path, copied: tuple[Path, dict[str, Tensor]]
) -> None:
    directory, tensors = copied
    write_shards(directory, tensors, shards=3)
    assert torch.equal(logits_of(directory), logits_of(model_dir))


def test_a_model_outlives_its_checkpoint_files(copied: tuple[Path, dict[str, Tensor]]) -> None:
    directory, tensors = copied
    save_file(tensors, directory / "model.safetensors")
    config = EngineConfig(model_path=str(directory), served_model_name="m", kv_cache_bytes=1 << 20)
    runner = load_runner(config).runner
    maps = Path("/proc/self/maps").read_text()
    assert str(directory) not in maps
    (directory / "model.safetensors").write_bytes(b"")
    row = ScheduledSequence(
        slot=0, token_ids=(1,), input_from_previous_step=False, start_position=0, block_table=(0,), sampling=GREEDY
    )
    assert bool(runner.logits(StepPlan(step_id=0, sequences=(row,))).isfinite().all())


def test_tensors_are_converted_to_the_dtype_asked_for(model_dir: Path) -> None:
    with open_weights(model_dir, dtype=torch.bfloat16) as weights:
        name = "model.norm.weight"
        expected = load_file(model_dir / "model.safetensors")[name].bfloat16()
        assert torch.equal(weights.take(name, 48), expected)
        assert name not in weights.left()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_pickled_weights_are_refused_unread(copied: tuple[Path, dict[str, Tensor]], name: str) -> None:
    directory, _ = copied
    (directory / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(ModelError, match=rf"holds pickled weights \({name}\).*supported: safetensors"):
        logits_of(directory)


def test_no_checkpoint_at_all_names_the_files_looked_for(copied: tuple[Path, dict[str, Tensor]]) -> None:
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        logits_of(copied[0])


def test_a_truncated_file_is_the_user_s_error(model_dir: Path, copied: tuple[Path, dict[str, Tensor]]) -> None:
    content = (model_dir / "model.safetensors").read_bytes()
    (copied[0] / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="is not a readable safetensors file"):
        logits_of(copied[0])


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "../secret.safetensors"}}, r"names files that are not in .*\.\./secret"),
        ({"weight_map": {"a": "missing.safetensors"}}, "names files that are not in .*missing"),
        ({"weight_map": {"a": 1, "b": "missing.safetensors"}}, "names files that are not in .*1, missing"),
        ({"nothing": 1}, "is not a valid index"),
        (["weight_map"], "is not a valid index"),
    ],
)
def test_a_bad_index_is_refused(copied: tuple[Path, dict[str, Tensor]], index: Any, message: str) -> None:
    directory, _ = copied
    (directory.parent / "secret.safetensors").write_bytes(b"")
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=message):
        logits_of(directory)


def test_missing_misshapen_and_surplus_tensors_are_named(copied: tuple[Path, dict[str, Tensor]]) -> None:
    directory, tensors = copied
    name = "model.layers.1.mlp.up_proj.weight"
    changes: list[tuple[dict[str, Tensor | None], str]] = [
        ({name: None}, f"holds no tensor '{name}'"),
        ({name: torch.ones((3, 3))}, rf"tensor '{name}' must be \[88, 48\] by config.json, got \[3, 3\]"),
        ({name: torch.ones((88, 48), dtype=torch.int8)}, rf"tensor '{name}' must be floating point, got torch.int8"),
        ({"model.layers.0.self_attn.q_norm.weight": torch.ones(8)}, r"does not use 1 tensors .*q_norm"),
    ]
    for change, message in changes:
        changed = {key: value for key, value in (tensors | change).items() if value is not None}
        save_file(changed, directory / "model.safetensors")
        with pytest.raises(ModelError, match=message):
            logits_of(directory)


def test_tensors_nobody_needs_are_left_out_without_complaint(
    model_dir: Path, copied: tuple[Path, dict[str, Tensor]]
) -> None:
    directory, tensors = copied
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, directory / "model.safetensors")
    assert torch.equal(logits_of(directory), logits_of(model_dir))
