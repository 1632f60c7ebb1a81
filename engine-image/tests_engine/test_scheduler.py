"""The scheduler: batching, chunking, planning ahead. Its survival under pressure is in test_scheduler_invariants."""

from __future__ import annotations

import pytest
from modelfleet_engine.request import FinishReason, StepOutputs
from modelfleet_engine.scheduler import Scheduler
from modelfleet_engine.step_plan import StepResult

from tests_engine.fake_device import expected_tokens
from tests_engine.scheduling import MODEL, Driver, limits, request


def test_a_request_generates_what_the_model_alone_would() -> None:
    driver = Driver(Scheduler(limits()))
    driver.scheduler.add(request("a", prompt=(5, 6, 7), max_tokens=10))

    driver.run()

    assert driver.tokens == {"a": expected_tokens(MODEL, (5, 6, 7), max_tokens=10)}
    assert driver.finished == {"a": FinishReason.LENGTH}


def test_the_next_step_is_planned_before_the_token_of_this_one_is_known() -> None:
    scheduler = Scheduler(limits())
    scheduler.add(request("a", prompt=(5, 6, 7), max_tokens=4))

    prefill, decode, next_decode = (scheduler.plan_step(0.0) for _ in range(3))

    assert prefill is not None
    assert decode is not None
    assert next_decode is not None
    (row,) = prefill.plan.sequences
    assert (row.token_ids, row.start_position, row.is_first_chunk) == ((5, 6, 7), 0, True)
    assert row.sampling is not None
    (row,) = decode.plan.sequences
    assert (row.token_ids, row.input_from_previous_step, row.start_position) == ((), True, 3)
    (row,) = next_decode.plan.sequences
    assert (row.input_from_previous_step, row.start_position, len(row.block_table)) == (True, 4, 2)


def test_a_token_that_is_known_is_sent_to_the_device() -> None:
    scheduler = Scheduler(limits())
    scheduler.add(request("a", prompt=(5, 6, 7), max_tokens=4))
    scheduler.plan_step(0.0)

    scheduler.complete_step(StepResult(step_id=0, sampled_token_ids=(9,), busy_seconds=0.0))
    planned = scheduler.plan_step(0.0)

    assert planned is not None
    assert planned.plan.sequences[0].token_ids == (9,)
    assert planned.plan.sequences[0].input_from_previous_step is False


def test_a_request_whose_last_token_is_in_flight_is_not_planned_again() -> None:
    scheduler = Scheduler(limits())
    scheduler.add(request("a", max_tokens=2))

    plans = [scheduler.plan_step(0.0) for _ in range(3)]

    assert [plan is None for plan in plans] == [False, False, True]


def test_a_long_prompt_is_computed_in_chunks_of_the_budget() -> None:
    scheduler = Scheduler(limits(batched_tokens=10))
    scheduler.add(request("a", prompt=tuple(range(25)), max_tokens=2))

    rows = [planned.plan.sequences[0] for planned in iter(lambda: scheduler.plan_step(0.0), None) if planned][:4]

    assert [(row.start_position, row.computed_tokens) for row in rows] == [(0, 10), (10, 10), (20, 5), (25, 1)]
    assert [row.sampling is not None for row in rows] == [False, False, True, True]
    assert [row.is_first_chunk for row in rows] == [True, False, False, False]
    assert [len(row.block_table) for row in rows] == [3, 5, 7, 7]


def test_decodes_come_first_and_prompts_get_what_is_left_of_the_budget() -> None:
    scheduler = Scheduler(limits(batched_tokens=9))
    scheduler.add(request("decoding", prompt=(1, 2), max_tokens=9))
    scheduler.plan_step(0.0)
    scheduler.add(request("long", prompt=tuple(range(12)), max_tokens=1))
    scheduler.add(request("last", prompt=(1, 2, 3, 4), max_tokens=1))

    first, second, third = (scheduler.plan_step(0.0) for _ in range(3))

    assert first is not None
    assert second is not None
    assert third is not None
    # Of 8 tokens the long prompt may have three quarters, so that the one behind it begins too.
    assert [row.computed_tokens for row in first.plan.sequences] == [1, 6, 2]
    assert [row.computed_tokens for row in second.plan.sequences] == [1, 6, 2]
    assert [row.computed_tokens for row in third.plan.sequences] == [1]
    assert [admission.request_id for admission in first.admitted] == ["long", "last"]
    assert (second.prefill_tokens, second.kv_tokens) == (8, 4 + 12 + 4)


def test_eight_streams_share_each_forward_pass() -> None:
    driver = Driver(Scheduler(limits(seqs=8, kv_blocks=400, max_model_len=200)))
    lengths = [100, 90, 80, 100, 70, 100, 95, 60]
    for index, length in enumerate(lengths):
        driver.scheduler.add(request(f"r{index}", prompt=(index, 1, 2), max_tokens=length))

    driver.run()

    assert {name: len(tokens) for name, tokens in driver.tokens.items()} == {
        f"r{index}": length for index, length in enumerate(lengths)
    }
    assert len(driver.plans) <= 1.2 * max(lengths)
    assert len(driver.plans) == 100


def test_no_more_sequences_run_than_there_are_slots() -> None:
    driver = Driver(Scheduler(limits(seqs=2)))
    for index in range(5):
        driver.scheduler.add(request(f"r{index}", max_tokens=3))
    driver.turn()

    assert (driver.scheduler.stats().running, driver.scheduler.stats().waiting) == (2, 3)
    driver.run()
    assert max(len(planned.sequences) for planned in driver.plans) == 2
    assert list(driver.finished) == ["r0", "r1", "r2", "r3", "r4"]


def test_a_stop_token_ends_a_request_and_its_overshoot_is_dropped() -> None:
    tokens = expected_tokens(MODEL, (1, 2, 3), max_tokens=20)
    stop = frozenset({tokens[4]})
    expected = expected_tokens(MODEL, (1, 2, 3), max_tokens=20, stop_token_ids=stop)
    driver = Driver(Scheduler(limits()))
    driver.scheduler.add(request("a", max_tokens=20, stop_token_ids=stop))

    driver.run()

    assert driver.tokens == {"a": expected}
    assert driver.finished == {"a": FinishReason.STOP}
    # One step more than tokens was planned: that nobody needed its token was not known yet.
    assert len(driver.plans) == len(expected) + 1


def test_blocks_of_a_stopped_request_are_free_at_once_for_the_device_runs_in_order() -> None:
    scheduler = Scheduler(limits(kv_blocks=4))
    scheduler.add(request("a", prompt=(1, 2, 3), max_tokens=8, stop_token_ids=frozenset({9})))
    scheduler.plan_step(0.0)
    scheduler.plan_step(0.0)

    outputs = scheduler.complete_step(StepResult(step_id=0, sampled_token_ids=(9,), busy_seconds=0.0))

    assert outputs.finish_reasons == {"a": FinishReason.STOP}
    assert (scheduler.has_work, scheduler.stats().kv_blocks_used) == (True, 0)
    assert scheduler.complete_step(StepResult(step_id=1, sampled_token_ids=(3,), busy_seconds=0.0)) == StepOutputs()
    scheduler.check_integrity()


def test_stop_tokens_are_banned_until_min_tokens_are_there() -> None:
    scheduler = Scheduler(limits())
    scheduler.add(request("a", max_tokens=4, min_tokens=2, stop_token_ids=frozenset({7, 5})))

    plans = [scheduler.plan_step(0.0) for _ in range(3)]

    samplings = [planned.plan.sequences[0].sampling for planned in plans if planned is not None]
    assert [sampling and sampling.banned_token_ids for sampling in samplings] == [(5, 7), (5, 7), ()]


def test_an_aborted_request_is_not_planned_and_leaves_nothing_behind() -> None:
    driver = Driver(Scheduler(limits()))
    driver.scheduler.add(request("gone", max_tokens=50))
    driver.scheduler.add(request("stays", prompt=(4, 5), max_tokens=6))
    driver.turn()
    driver.turn()

    assert driver.scheduler.abort("gone") is True
    planned = driver.scheduler.plan_step(0.0)

    assert planned is not None
    assert [sequence.request.request_id for sequence in planned.sequences] == ["stays"]
    assert driver.scheduler.abort("gone") is False


def test_a_waiting_request_can_be_aborted() -> None:
    scheduler = Scheduler(limits(seqs=1))
    scheduler.add(request("runs"))
    scheduler.add(request("waits"))
    scheduler.plan_step(0.0)

    assert scheduler.abort("waits") is True
    assert scheduler.stats().waiting == 0


def test_a_request_that_can_never_fit_is_refused_with_the_numbers() -> None:
    scheduler = Scheduler(limits(kv_blocks=4, block_tokens=4, max_model_len=1000))

    with pytest.raises(ValueError, match=r"10 prompt tokens and max_tokens 7; at most 16 tokens fit"):
        scheduler.add(request("big", prompt=tuple(range(10)), max_tokens=7))


def test_a_result_out_of_order_is_a_bug() -> None:
    scheduler = Scheduler(limits())
    scheduler.add(request("a"))
    scheduler.plan_step(0.0)

    with pytest.raises(RuntimeError, match="result of step 5 came where 0 was due"):
        scheduler.complete_step(StepResult(step_id=5, sampled_token_ids=(1,), busy_seconds=0.0))
