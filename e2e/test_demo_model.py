"""The demo model's directory: prepared once, copied whole, readable for every user, replaced when out of date."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from e2e import demo_model

pytestmark = pytest.mark.model

FILES = {
    demo_model.STAMP_FILE,
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def test_the_prepared_model_is_kept_and_readable_for_a_user_who_is_not_root() -> None:
    first = demo_model.demo_model_path()
    prepared_at = (first / "model.safetensors").stat().st_mtime_ns
    assert demo_model.demo_model_path() == first
    assert (first / "model.safetensors").stat().st_mtime_ns == prepared_at
    assert {path.name for path in first.iterdir()} == FILES
    assert first.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in first.iterdir()} == {0o644}


def test_a_copy_equals_the_model_is_made_once_and_replaces_an_outdated_one(tmp_path: Path) -> None:
    prepared = demo_model.demo_model_path()
    destination = tmp_path / "volume" / "smollm2"
    destination.mkdir(parents=True)
    (destination / demo_model.STAMP_FILE).write_text(json.dumps({"recipe": 0}))
    (destination / "old.bin").write_text("old")
    assert demo_model.copy_demo_model(destination) == destination
    assert {path.name: path.stat().st_size for path in destination.iterdir()} == {
        path.name: path.stat().st_size for path in prepared.iterdir()
    }
    copied_at = (destination / "model.safetensors").stat().st_ino
    demo_model.copy_demo_model(destination)
    assert (destination / "model.safetensors").stat().st_ino == copied_at
    # No staging directory stays behind.
    assert [path.name for path in destination.parent.iterdir()] == ["smollm2"]
