"""How long a step may take before the process counts as hung: by the clock, and by what this model needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from modelfleet_api.protocol import StepTime

from tests_engine.serving_here import MAX_MODEL_LEN, MAX_OUTSTANDING, serving_here
from tests_engine.tiny_model import write_tiny_model


async def test_a_slow_model_has_twenty_of_its_own_full_steps_before_it_counts_as_stuck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving_here(write_tiny_model(tmp_path / "tiny")) as (serving, model):
        monkeypatch.setattr(model.bridge, "step_age_seconds", lambda: 100.0)
        assert serving.unhealthy_reason() == "a step has been running for 100 s, the limit is 30 s"

        serving.model = replace(model, first_full_step_seconds=6.0)
        assert serving.unhealthy_reason() is None

        serving.model = replace(model, first_full_step_seconds=4.0)
        assert serving.unhealthy_reason() == "a step has been running for 100 s, the limit is 80 s"


async def test_the_learned_step_time_replaces_the_first_guess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving_here(write_tiny_model(tmp_path / "tiny")) as (serving, model):
        serving.model = replace(model, first_full_step_seconds=99.0)
        learned = StepTime(
            base_seconds=1.0,
            per_sequence_seconds=0.5,
            per_prefill_token_seconds=0.25,
            per_kv_token_seconds=0.125,
            observed_steps=32,
        )
        monkeypatch.setattr(model.bridge, "stats", replace(model.bridge.stats, step_time=learned))
        config = serving.config
        kv_tokens = MAX_MODEL_LEN * MAX_OUTSTANDING
        expected = 1.0 + 0.5 * config.max_num_seqs + 0.25 * config.max_num_batched_tokens + 0.125 * kv_tokens
        assert serving.full_step_seconds() == expected
