"""The engine's own figures: histograms, the learned step time, and Prometheus' view of them."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from modelfleet_api import metric_names
from modelfleet_api.engine_config import EngineConfig
from modelfleet_api.protocol import Load, StepTime
from modelfleet_engine.drain import Drain
from modelfleet_engine.load import Histogram, StepTimeFit
from modelfleet_engine.metrics import Metrics
from modelfleet_engine.serving import Serving
from prometheus_client.parser import text_string_to_metric_families


def test_a_value_on_a_bound_belongs_to_that_bucket() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 99.0):
        histogram.observe(value)
    histogram.observe(3.0, count=2)

    snapshot = histogram.snapshot()

    assert (snapshot.counts, snapshot.sum) == ((2, 2, 3), 110.0)


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


async def _serving() -> Serving:
    return Serving(
        config=EngineConfig(model_path="/m", served_model_name="smol", canonical_id="smol.default"),
        drain=Drain(accept_seconds=0, drain_seconds=0),
        tokenizer_pool=ThreadPoolExecutor(max_workers=1),
    )


async def test_a_report_before_loading_says_the_phase_and_nothing_wrong() -> None:
    serving = await _serving()

    load = serving.load()

    assert (load.model, load.phase, load.ready, load.kv_blocks_total, load.step_time) == (
        "smol",
        "starting",
        False,
        0,
        None,
    )
    assert Load.model_validate_json(load.model_dump_json(by_alias=True)) == load
    assert serving.model_names == ("smol", "smol.default")


def test_the_wire_form_is_camel_case_and_takes_fields_of_the_future() -> None:
    raw = (
        '{"baseSeconds": 1, "perSequenceSeconds": 2, "perPrefillTokenSeconds": 3, '
        '"perKvTokenSeconds": 4, "observedSteps": 5, "fromTheFuture": 6}'
    )
    assert StepTime.model_validate_json(raw).per_kv_token_seconds == 4


async def test_prometheus_sees_vllms_names_with_vllms_labels() -> None:
    serving = await _serving()
    serving.counts.count_finished("stop")
    serving.counts.time_to_first_token.observe(0.03)
    serving.counts.time_to_first_token.observe(99999.0)

    families = {family.name: family for family in text_string_to_metric_families(Metrics(serving).render().decode())}

    expected = {value for name, value in vars(metric_names).items() if name.isupper() and not name.startswith("LABEL_")}
    assert set(families) == expected
    for family in families.values():
        for sample in family.samples:
            assert sample.labels["model_name"] == "smol"
            assert sample.labels["engine"] == "0"
    finished = {
        sample.labels["finished_reason"]: sample.value
        for sample in families["vllm:request_success"].samples
        if sample.name.endswith("_total")
    }
    assert finished == {"abort": 0, "length": 0, "stop": 1}
    ttft = {
        (sample.name.rpartition("_")[2], sample.labels.get("le")): sample.value
        for sample in families["vllm:time_to_first_token_seconds"].samples
    }
    assert (ttft["bucket", "0.02"], ttft["bucket", "0.04"], ttft["bucket", "2560.0"]) == (0, 1, 1)
    assert (ttft["bucket", "+Inf"], ttft["count", None], ttft["sum", None]) == (2, 2, 99999.03)


def test_the_api_package_needs_nothing_of_the_engine() -> None:
    source = Path(metric_names.__file__).read_text(encoding="utf-8")

    assert "import" not in source.replace("from __future__ import annotations", "")
