"""The engine's own figures: histograms, the learned step time, and Prometheus' view of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from modelfleet_api import metric_names
from modelfleet_api.engine_config import EngineConfig
from modelfleet_api.protocol import Load, StepTime
from modelfleet_engine.drain import Drain
from modelfleet_engine.http.app import build_app
from modelfleet_engine.load import Histogram, RequestCounts
from modelfleet_engine.metrics import Metrics
from modelfleet_engine.request import FinishReason, GenerationRequest
from modelfleet_engine.serving import Serving
from modelfleet_engine.step_plan import SamplingParameters
from prometheus_client.parser import text_string_to_metric_families

from tests_engine.serving_here import serving_here
from tests_engine.tiny_model import write_tiny_model


def test_a_value_on_a_bound_belongs_to_that_bucket() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 99.0):
        histogram.observe(value)

    snapshot = histogram.snapshot()

    assert (snapshot.counts, snapshot.sum) == ((2, 2, 1), 104.0)


def test_who_gives_up_before_the_first_token_says_nothing_of_how_long_answers_are() -> None:
    counts = RequestCounts()
    counts.count_finished(FinishReason.LENGTH, generated_tokens=30)
    counts.count_finished(FinishReason.STOP, generated_tokens=0)
    counts.count_finished(FinishReason.ABORT, generated_tokens=6)
    for reason in (FinishReason.ABORT, FinishReason.DEADLINE):
        counts.count_finished(reason, generated_tokens=0)

    assert counts.finished == {"length": 1, "stop": 1, "abort": 2, "deadline": 1}
    assert counts.output_lengths.mean == 12


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
    serving.counts.count_finished(FinishReason.STOP, generated_tokens=1)
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
    assert finished == {"abort": 0, "deadline": 0, "length": 0, "stop": 1}
    ttft = {
        (sample.name.rpartition("_")[2], sample.labels.get("le")): sample.value
        for sample in families["vllm:time_to_first_token_seconds"].samples
    }
    assert (ttft["bucket", "0.02"], ttft["bucket", "0.04"], ttft["bucket", "2560.0"]) == (0, 1, 1)
    assert (ttft["bucket", "+Inf"], ttft["count", None], ttft["sum", None]) == (2, 2, 99999.03)


def _samples(serving: Serving, name: str, label: str = "") -> dict[str, float]:
    """A family's values by one of its labels."""
    families = text_string_to_metric_families(Metrics(serving).render().decode())
    (family,) = [family for family in families if family.name == name]
    return {sample.labels.get(label, ""): sample.value for sample in family.samples if "created" not in sample.name}


async def test_every_reason_to_refuse_is_shown_from_the_start() -> None:
    serving = await _serving()
    serving.counts.count_refused("queued_tokens")

    assert _samples(serving, metric_names.ADMISSION_REJECTIONS, "reason") == {
        "deadline_exceeded": 0,
        "deadline_unreachable": 0,
        "draining": 0,
        "queue_full": 0,
        "queued_tokens": 1,
        "unauthorized": 0,
    }


async def test_a_served_model_shows_its_cache_its_kernels_and_what_a_step_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        serving_here(write_tiny_model(tmp_path / "tiny")) as (serving, model),
        TestClient(TestServer(build_app(serving))) as client,
    ):
        body = {"model": "tiny", "prompt": "a" * 40, "max_tokens": 2}
        for _ in range(2):
            assert (await client.post("/v1/completions", json=body)).status == 200
        learned = StepTime(
            base_seconds=0.5,
            per_sequence_seconds=0.25,
            per_prefill_token_seconds=0.125,
            per_kv_token_seconds=0.0625,
            observed_steps=9,
        )
        monkeypatch.setattr(model.bridge, "stats", replace(model.bridge.stats, step_time=learned))

        assert _samples(serving, metric_names.STEP_TIME_SECONDS, "term") == {
            "base": 0.5,
            "per_sequence": 0.25,
            "per_prefill_token": 0.125,
            "per_kv_token": 0.0625,
        }
        # The second prompt of 40 tokens found its two full blocks of 16.
        assert _samples(serving, metric_names.PREFIX_CACHE_HITS) == {"": 32}
        assert _samples(serving, metric_names.PREFIX_CACHE_QUERIES) == {"": 80}
        assert _samples(serving, metric_names.KV_BLOCKS_CACHED) == {"": model.bridge.stats.scheduler.kv_blocks_cached}
        assert model.bridge.stats.scheduler.kv_blocks_cached >= 2
        assert _samples(serving, metric_names.EXPIRED_REQUESTS) == {"": 0}
        assert _samples(serving, metric_names.KERNEL_BACKEND_INFO, "backend") == {"fake": 1}
        assert _samples(serving, metric_names.KERNEL_BACKEND_INFO, "dtype") == {"float32": 1}
        assert _samples(serving, metric_names.CACHE_CONFIG_INFO, "enable_prefix_caching") == {"True": 1}
        assert serving.load().counters.cached_tokens == 32
        assert serving.load().step_time == learned


async def test_work_the_engine_has_not_seen_yet_is_queued_already(tmp_path: Path) -> None:
    async with serving_here(write_tiny_model(tmp_path / "tiny")) as (serving, model):
        generation = model.bridge.submit(
            [GenerationRequest(request_id="r", prompt_token_ids=(1,) * 30, sampling=SamplingParameters(), max_tokens=1)]
        )
        # Nothing was awaited since: no update can have come.
        load = serving.load()
        await generation.next_tokens()

        assert (load.queued_tokens, load.waiting) == (30, 1)
        assert serving.load().queued_tokens == 0


def test_the_api_package_needs_nothing_of_the_engine() -> None:
    source = Path(metric_names.__file__).read_text(encoding="utf-8")

    assert "import" not in source.replace("from __future__ import annotations", "")
