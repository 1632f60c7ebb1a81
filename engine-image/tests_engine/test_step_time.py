"""The learned step time: right on clean steps, unmoved by starved ones, sensible before there are many."""

from __future__ import annotations

import random

import pytest
from modelfleet_engine.step_plan import ProfiledStep
from modelfleet_engine.step_time import StepTimeFit, predict_seconds


def test_the_step_time_is_learned_from_measured_steps() -> None:
    chance = random.Random(3)
    fit = StepTimeFit()
    for _ in range(500):
        sequences, prefill, kv = chance.randint(1, 32), chance.choice([0, 0, 128, 400]), chance.randint(50, 8000)
        seconds = 0.004 + 0.0003 * sequences + 0.0006 * prefill + 0.000002 * kv
        fit.observe(
            sequences=sequences, prefill_tokens=prefill, kv_tokens=kv, seconds=seconds * chance.uniform(0.98, 1.02)
        )

    learned = fit.fitted()

    assert learned is not None
    assert learned.per_prefill_token_seconds == pytest.approx(0.0006, rel=0.03)
    assert learned.per_kv_token_seconds == pytest.approx(0.000002, rel=0.2)
    predicted = (
        learned.base_seconds
        + 16 * learned.per_sequence_seconds
        + 128 * learned.per_prefill_token_seconds
        + 4000 * learned.per_kv_token_seconds
    )
    assert predicted == pytest.approx(0.004 + 0.0048 + 0.0768 + 0.008, rel=0.02)


def test_no_learned_term_is_negative() -> None:
    fit = StepTimeFit()
    for step in range(100):
        # Falls with the number of sequences: no honest model of a step.
        fit.observe(sequences=step, prefill_tokens=0, kv_tokens=0, seconds=1.0 - step * 0.005)

    learned = fit.fitted()

    assert learned is not None
    assert learned.per_sequence_seconds == 0.0
    assert learned.base_seconds > 0.5


def test_equal_steps_still_predict_themselves() -> None:
    fit = StepTimeFit()
    for _ in range(50):
        fit.observe(sequences=1, prefill_tokens=0, kv_tokens=100, seconds=0.02)

    learned = fit.fitted()

    assert learned is not None
    total = learned.base_seconds + learned.per_sequence_seconds + 100 * learned.per_kv_token_seconds
    assert total == pytest.approx(0.02, rel=1e-3)


def test_too_few_steps_teach_nothing() -> None:
    fit = StepTimeFit()
    for _ in range(7):
        fit.observe(sequences=1, prefill_tokens=0, kv_tokens=1, seconds=0.02)

    assert fit.fitted() is None


def _measure(fit: StepTimeFit, chance: random.Random, *, steps: int, starved_share: float, slowness: float) -> None:
    """Steps of 5 ms + 0.3 ms a sequence + 0.8 ms a prefill token + 1 us a KV token, some of them starved."""
    for _ in range(steps):
        sequences, prefill = chance.randint(1, 32), chance.choice([0, 0, 0, 200, 512])
        kv = sequences * chance.randint(100, 600)
        seconds = (0.005 + 0.0003 * sequences + 0.0008 * prefill + 1e-6 * kv) * chance.uniform(0.95, 1.05)
        is_starved = chance.random() < starved_share
        fit.observe(
            sequences=sequences, prefill_tokens=prefill, kv_tokens=kv, seconds=seconds * (slowness if is_starved else 1)
        )


def test_steps_that_another_process_starved_do_not_spoil_what_was_learned() -> None:
    chance = random.Random(5)
    fit = StepTimeFit()
    _measure(fit, chance, steps=100, starved_share=0.0, slowness=1.0)
    _measure(fit, chance, steps=900, starved_share=0.05, slowness=20.0)

    learned = fit.fitted()

    assert learned is not None
    predicted = predict_seconds(learned, sequences=16, prefill_tokens=200, kv_tokens=5000)
    # 5 % of steps at 20 times the time would nearly double a plain mean.
    assert predicted == pytest.approx(0.005 + 0.0048 + 0.16 + 0.005, rel=0.06)


def test_a_machine_that_became_slow_for_good_is_believed_in_time() -> None:
    chance = random.Random(6)
    fit = StepTimeFit()
    _measure(fit, chance, steps=500, starved_share=0.0, slowness=1.0)
    _measure(fit, chance, steps=3000, starved_share=1.0, slowness=3.0)

    learned = fit.fitted()

    assert learned is not None
    predicted = predict_seconds(learned, sequences=16, prefill_tokens=200, kv_tokens=5000)
    assert predicted == pytest.approx(3 * 0.1748, rel=0.1)


def test_the_fit_begins_with_the_profiled_steps_and_does_not_blame_the_cache_for_the_prompt() -> None:
    fit = StepTimeFit(
        (
            ProfiledStep(sequences=1, prefill_tokens=512, kv_tokens=512, seconds=0.4),
            ProfiledStep(sequences=32, prefill_tokens=0, kv_tokens=64, seconds=0.03),
        )
    )

    assert fit.latest is not None
    assert fit.latest.observed_steps == 0
    assert predict_seconds(fit.latest, sequences=1, prefill_tokens=512, kv_tokens=512) == pytest.approx(0.4, rel=0.01)
    # Both terms grow alike in a prompt computed at once; a decode that reads 8,000 tokens must not look like one.
    assert predict_seconds(fit.latest, sequences=32, prefill_tokens=0, kv_tokens=8000) < 0.06


def test_the_first_prompt_is_believed_though_only_decodes_were_seen() -> None:
    fit = StepTimeFit()
    for kv in range(100, 150):
        fit.observe(sequences=1, prefill_tokens=0, kv_tokens=kv, seconds=0.02)
    fit.observe(sequences=2, prefill_tokens=512, kv_tokens=700, seconds=0.42)

    assert fit.latest is not None
    assert fit.latest.per_prefill_token_seconds == pytest.approx(0.4 / 512, rel=0.05)
