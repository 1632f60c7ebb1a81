"""Who gets how much of a step, and who gets none any more: shares, the latency target, priorities, deadlines."""

from __future__ import annotations

import pytest
from modelfleet_api.protocol import StepTime
from modelfleet_engine.request import FinishReason
from modelfleet_engine.scheduler import PlannedStep, Scheduler
from modelfleet_engine.step_time import predict_seconds

from tests_engine.scheduling import Driver, limits, request

STEP_TIME = StepTime(
    base_seconds=0.010,
    per_sequence_seconds=0.001,
    per_prefill_token_seconds=0.001,
    per_kv_token_seconds=0.00001,
    observed_steps=100,
)


def _tokens(planned: PlannedStep | None) -> dict[str, int]:
    assert planned is not None
    rows = zip(planned.sequences, planned.plan.sequences, strict=True)
    return {sequence.request.request_id: row.computed_tokens for sequence, row in rows}


def test_one_long_prompt_alone_gets_the_whole_budget() -> None:
    scheduler = Scheduler(limits(batched_tokens=40))
    scheduler.add(request("long", prompt=(1,) * 100, max_tokens=1))

    assert _tokens(scheduler.plan_step(0.0)) == {"long": 40}


def test_a_long_prompt_leaves_a_quarter_to_those_behind_it() -> None:
    scheduler = Scheduler(limits(batched_tokens=40))
    scheduler.add(request("long", prompt=(1,) * 100, max_tokens=1))
    scheduler.add(request("short", prompt=(2,) * 9, max_tokens=4))

    assert _tokens(scheduler.plan_step(0.0)) == {"long": 31, "short": 9}


def test_what_nobody_else_can_use_goes_to_the_long_prompt_after_all() -> None:
    scheduler = Scheduler(limits(batched_tokens=40, seqs=1))
    scheduler.add(request("long", prompt=(1,) * 100, max_tokens=1))
    scheduler.add(request("no-slot-for-it", prompt=(2,) * 9, max_tokens=4))

    assert _tokens(scheduler.plan_step(0.0)) == {"long": 40}


@pytest.mark.parametrize(("target_seconds", "chunk"), [(0.060, 47), (0.030, 17), (0.005, 16), (None, 100)])
def test_beside_a_decode_a_prompts_chunk_keeps_the_target_but_never_stops(
    target_seconds: float | None, chunk: int
) -> None:
    scheduler = Scheduler(limits(batched_tokens=101, kv_blocks=100, itl_target_seconds=target_seconds))
    scheduler.step_time = STEP_TIME
    scheduler.add(request("decodes", prompt=(1,), max_tokens=50))
    scheduler.plan_step(0.0)
    scheduler.add(request("long", prompt=(2,) * 110, max_tokens=1))

    planned = scheduler.plan_step(0.0)

    assert _tokens(planned) == {"decodes": 1, "long": chunk}
    assert planned is not None
    predicted = predict_seconds(
        STEP_TIME, sequences=2, prefill_tokens=planned.prefill_tokens, kv_tokens=planned.kv_tokens
    )
    one_more = predicted + STEP_TIME.per_prefill_token_seconds + STEP_TIME.per_kv_token_seconds
    if target_seconds is not None and chunk > 16:
        assert predicted <= target_seconds < one_more


def test_beyond_the_target_all_prompts_together_get_one_minimum() -> None:
    scheduler = Scheduler(limits(batched_tokens=101, kv_blocks=100, itl_target_seconds=0.005))
    scheduler.step_time = STEP_TIME
    scheduler.add(request("decodes", prompt=(1,), max_tokens=50))
    scheduler.plan_step(0.0)
    scheduler.add(request("long", prompt=(2,) * 110, max_tokens=1))
    scheduler.add(request("also-long", prompt=(3,) * 110, max_tokens=1))

    assert _tokens(scheduler.plan_step(0.0)) == {"decodes": 1, "long": 12, "also-long": 4}


def test_where_prompt_tokens_seem_to_cost_nothing_a_missed_target_still_leaves_them_the_minimum() -> None:
    # What is learned of a device whose steps all take the same time.
    flat = StepTime(
        base_seconds=0.010,
        per_sequence_seconds=0.0,
        per_prefill_token_seconds=0.0,
        per_kv_token_seconds=0.0,
        observed_steps=100,
    )
    scheduler = Scheduler(limits(batched_tokens=101, kv_blocks=100, itl_target_seconds=0.005))
    scheduler.step_time = flat
    scheduler.add(request("decodes", prompt=(1,), max_tokens=50))
    scheduler.plan_step(0.0)
    scheduler.add(request("long", prompt=(2,) * 110, max_tokens=1))

    assert _tokens(scheduler.plan_step(0.0)) == {"decodes": 1, "long": 16}


def test_admission_leaves_a_block_of_growth_for_each_that_runs() -> None:
    scheduler = Scheduler(limits(kv_blocks=4, max_model_len=16))
    scheduler.add(request("runs", prompt=(1,) * 8, max_tokens=2))
    scheduler.add(request("waits", prompt=(2,) * 8, max_tokens=2))

    # Two blocks each would fill the cache, and the next token of the first would take the second's.
    assert _tokens(scheduler.plan_step(0.0)) == {"runs": 8}
    assert scheduler.stats().waiting == 1


def test_without_decodes_the_target_limits_nothing() -> None:
    scheduler = Scheduler(limits(batched_tokens=100, itl_target_seconds=0.001))
    scheduler.step_time = STEP_TIME
    scheduler.add(request("long", prompt=(2,) * 120, max_tokens=1))

    assert _tokens(scheduler.plan_step(0.0)) == {"long": 100}


def test_a_lower_priority_value_is_served_sooner_and_equals_by_arrival() -> None:
    driver = Driver(Scheduler(limits(seqs=1)))
    for name, priority in (("late", 5), ("first", 0), ("second", 0), ("urgent", -3)):
        driver.scheduler.add(request(name, max_tokens=2, priority=priority))

    driver.run()

    assert list(driver.finished) == ["urgent", "first", "second", "late"]


def test_a_worse_priority_is_overtaken_for_a_while_only() -> None:
    driver = Driver(Scheduler(limits(seqs=1)))
    arrivals = (("runs", 0, 0.0), ("batch", 1, 1.0), ("soon-after", 0, 60.5), ("long-after", 0, 61.5))
    for name, priority, now_seconds in arrivals:
        driver.scheduler.add(request(name, max_tokens=2, priority=priority), now_seconds)
    driver.run()

    assert list(driver.finished) == ["runs", "soon-after", "batch", "long-after"]


def test_the_worst_priority_gives_way_however_much_it_has_computed() -> None:
    driver = Driver(Scheduler(limits(kv_blocks=6, max_model_len=20)))
    driver.scheduler.add(request("batch", prompt=(1,) * 8, max_tokens=12, priority=10))
    driver.scheduler.add(request("chat", prompt=(2,) * 3, max_tokens=16, priority=0))

    driver.run()

    assert list(driver.finished) == ["chat", "batch"]
    assert driver.scheduler.stats().preemptions == 1


def test_a_preempted_request_comes_back_before_those_that_never_ran() -> None:
    driver = Driver(Scheduler(limits(kv_blocks=6, max_model_len=20)))
    driver.scheduler.add(request("old", prompt=(1,) * 8, max_tokens=12))
    driver.scheduler.add(request("young", prompt=(2,) * 3, max_tokens=16))
    driver.scheduler.add(request("waits", prompt=(3,) * 17, max_tokens=1))

    driver.run()

    assert list(driver.finished) == ["old", "young", "waits"]


def test_expired_work_is_shed_before_it_is_computed() -> None:
    scheduler = Scheduler(limits(seqs=1))
    scheduler.add(request("runs", deadline_seconds=20.0))
    scheduler.add(request("waits", deadline_seconds=10.0))
    scheduler.plan_step(9.9)
    assert scheduler.take_ended() == {}

    planned = scheduler.plan_step(10.0)

    assert _tokens(planned) == {"runs": 1}
    assert scheduler.take_ended() == {"waits": FinishReason.DEADLINE}
    assert scheduler.take_ended() == {}
    assert scheduler.plan_step(20.0) is None
    assert scheduler.take_ended() == {"runs": FinishReason.DEADLINE}
    stats = scheduler.stats()
    assert (stats.running, stats.waiting, stats.expired, stats.kv_blocks_used) == (0, 0, 2, 0)


def test_the_token_under_way_when_a_deadline_passes_is_dropped() -> None:
    driver = Driver(Scheduler(limits()))
    driver.scheduler.add(request("a", max_tokens=50, deadline_seconds=1.0))
    for _ in range(4):
        driver.turn()
    tokens = list(driver.tokens["a"])
    driver.now_seconds = 1.0
    driver.run()

    assert (driver.tokens["a"], driver.finished) == (tokens, {"a": FinishReason.DEADLINE})


def test_the_stats_say_exactly_what_runs_waits_and_is_wasted() -> None:
    scheduler = Scheduler(limits(seqs=2, kv_blocks=64))
    scheduler.add(request("a", prompt=(1,) * 10))
    scheduler.add(request("b", prompt=(2,) * 4))
    scheduler.add(request("c", prompt=(3,) * 7))
    scheduler.plan_step(0.0)

    stats = scheduler.stats()

    assert (stats.running, stats.waiting, stats.steps) == (2, 1, 1)
    # Each running request has its prompt and one token that is being sampled.
    assert (stats.running_tokens, stats.queued_tokens) == (11 + 5, 7)
    # 10 tokens take three blocks of four, 4 take one: room for 16, and 11 + 5 tokens are there or will be.
    assert (stats.kv_blocks_used, stats.kv_blocks_total, stats.kv_waste_ratio) == (4, 64, 1 / 16)
    scheduler.abort("c")
    assert scheduler.stats().queued_tokens == 0


def test_little_room_is_wasted_inside_blocks_of_sixteen_tokens() -> None:
    driver = Driver(Scheduler(limits(seqs=16, batched_tokens=512, kv_blocks=600, block_tokens=16, max_model_len=400)))
    for index in range(16):
        driver.scheduler.add(request(f"r{index}", prompt=(index,) * (240 + index), max_tokens=64))
    ratios = []
    while driver.scheduler.has_work:
        driver.turn()
        ratios.append(driver.scheduler.stats().kv_waste_ratio)

    assert sum(ratios) / len(ratios) < 0.04
