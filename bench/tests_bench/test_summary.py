"""The numbers of the tables: from records to latencies, rates and medians."""

from __future__ import annotations

import pytest

from bench.load_job import LoadJob, RequestRecord, records_from_json, records_to_json
from bench.scenarios import scenarios
from bench.summary import median_summary, percentile, summarize
from bench.tests_bench.records import load_summary, request_record


def test_percentiles_lie_between_their_neighbours() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert percentile([1.0, 2.0], 0.99) == pytest.approx(1.99)
    assert percentile([7.0], 0.99) == 7.0
    assert percentile([], 0.5) is None


def test_a_load_is_summed_up_over_the_requests_that_were_answered() -> None:
    summary = summarize(
        [
            request_record(sent=0.0, arrivals=(1.0, 1.5, 2.0)),
            request_record(sent=1.0, arrivals=(1.5, 2.0, 4.0)),
            request_record(sent=0.0, arrivals=(3.0, 3.0, 3.0), failure="HTTP 500"),
        ]
    )
    assert (summary.requests, summary.failed, summary.first_failure) == (3, 1, "HTTP 500")
    assert summary.wall_seconds == 4.0
    assert summary.output_tokens_per_second == 1.5
    assert summary.ttft_p50_seconds == 0.75
    assert summary.itl_p50_seconds == 0.5
    assert summary.tpot_p50_seconds == 0.875
    assert summary.prompt_tokens == 512


def test_a_load_that_failed_altogether_has_no_latencies() -> None:
    failed = RequestRecord(sent_seconds=0.0, finished_seconds=2.0, failure="refused")
    summary = summarize([failed, failed])
    assert (summary.failed, summary.output_tokens_per_second) == (2, 0.0)
    assert summary.ttft_p50_seconds is None
    assert summary.tpot_p50_seconds is None


def test_the_median_round_counts_the_failures_of_all_rounds() -> None:
    chosen = median_summary([load_summary(30.0), load_summary(10.0, failed=1), load_summary(20.0)])
    assert chosen.output_tokens_per_second == 20.0
    assert (chosen.requests, chosen.failed, chosen.first_failure) == (12, 1, "HTTP 500")


def test_jobs_and_records_survive_the_way_between_the_processes() -> None:
    for scenario in scenarios(quick=True):
        job = scenario.job(base_url="http://localhost:1", model="demo", round_number=0)
        assert LoadJob.from_json(job.to_json()) == job
    records = [request_record(arrivals=(1.0, 2.0)), request_record(arrivals=(1.0,), failure="HTTP 500")]
    assert records_from_json(records_to_json(records)) == records


def test_no_prompt_is_sent_twice_but_where_the_cache_is_measured() -> None:
    seen: set[tuple[int, ...]] = set()
    for scenario in scenarios(quick=False):
        for round_number in range(scenario.rounds):
            prompts = scenario.job(base_url="", model="", round_number=round_number).prompts
            copies = 2 if scenario.kind == "cached" else 1
            assert len(set(prompts)) * copies == len(prompts)
            assert seen.isdisjoint(prompts)
            seen.update(prompts)
    # A shared beginning would be a prefix cache's hit, too.
    assert len({prompt[:16] for prompt in seen}) == len(seen)


def test_every_server_gets_the_same_prompts() -> None:
    for scenario in scenarios(quick=True):
        first = scenario.job(base_url="http://a", model="demo", round_number=0)
        second = scenario.job(base_url="http://b", model="demo", round_number=0)
        assert (first.prompts, first.chats) == (second.prompts, second.chats)
