"""Limits that follow the model: how long a step may take before it counts as stuck, how long a body may be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from modelfleet_api.protocol import StepTime
from modelfleet_engine.step_plan import ProfiledStep

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


async def test_what_a_step_costs_is_known_from_the_profile_before_the_first_request(tmp_path: Path) -> None:
    profiled = tuple(
        ProfiledStep(sequences=1, prefill_tokens=tokens, kv_tokens=0, seconds=1.0 + 0.5 * tokens)
        for tokens in (1, 8, 64)
    )
    async with serving_here(write_tiny_model(tmp_path / "tiny"), profiled=profiled) as (serving, _):
        config = serving.config
        learned = serving.load().step_time

        assert learned is not None
        assert learned.observed_steps == 0
        # All profiled steps have one sequence: its part of the second and the base cannot be told apart.
        one_sequence = learned.base_seconds + learned.per_sequence_seconds
        prompt = config.max_num_batched_tokens * learned.per_prefill_token_seconds
        assert one_sequence + prompt == pytest.approx(1.0 + 0.5 * 512, rel=0.01)
        assert serving.full_step_seconds() >= one_sequence + prompt


@pytest.mark.parametrize(
    ("max_model_len", "expected"),
    [(256, 4 * 1024 * 1024), (131_072, 8 * 1024 * 1024), (10_485_760, 32 * 1024 * 1024)],
)
async def test_a_body_may_have_64_bytes_for_each_token_of_the_context_within_bounds(
    tmp_path: Path, max_model_len: int, expected: int
) -> None:
    async with serving_here(write_tiny_model(tmp_path / "tiny")) as (serving, model):
        serving.model = replace(model, max_model_len=max_model_len)

        assert serving.max_body_bytes == expected
