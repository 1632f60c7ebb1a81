"""Who may join the queue, and when the others should come back: exact numbers, no clock."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelfleet_api.protocol import StepTime
from modelfleet_engine.admission import (
    ADMITTED,
    AdmissionLimits,
    EngineState,
    QueueLimits,
    Refusal,
    WaitingWork,
    Work,
    decide,
    wait_seconds,
    work_of,
)
from modelfleet_engine.request import GenerationRequest
from modelfleet_engine.step_plan import SamplingParameters

LIMITS = AdmissionLimits(max_sequences=12, max_queued_tokens=1000, max_num_seqs=4, max_num_batched_tokens=100)
STEP_TIME = StepTime(
    base_seconds=0.5,
    per_sequence_seconds=0.25,
    per_prefill_token_seconds=0.01,
    per_kv_token_seconds=0.001,
    observed_steps=99,
)


def _state(
    *,
    outstanding: int = 0,
    waiting: Work | None = None,
    ahead: Work | None = None,
    step_time: StepTime | None = STEP_TIME,
) -> EngineState:
    """All that waits is ahead, unless said otherwise."""
    waiting = waiting or Work()
    return EngineState(
        outstanding=outstanding, waiting=waiting, ahead=ahead or waiting, kv_tokens=500, step_time=step_time
    )


def _request(name: str, *, prompt_tokens: int, max_tokens: int, group_id: str = "") -> GenerationRequest:
    return GenerationRequest(
        request_id=name,
        prompt_token_ids=(1,) * prompt_tokens,
        sampling=SamplingParameters(),
        max_tokens=max_tokens,
        group_id=group_id,
    )


def _work(sequences: int, prompt_tokens: int, output_tokens: int) -> Work:
    return Work(sequences=sequences, prompt_tokens=prompt_tokens, output_tokens=output_tokens)


def test_what_fits_both_bounds_is_admitted() -> None:
    assert decide(_work(8, 500, 100), _state(outstanding=4, waiting=_work(2, 300, 100)), LIMITS) == ADMITTED


def test_a_full_queue_of_sequences_is_refused_with_the_numbers() -> None:
    decision = decide(_work(2, 10, 10), _state(outstanding=11, waiting=_work(7, 70, 70)), LIMITS)

    assert decision.refusal is Refusal.QUEUE_FULL
    assert decision.message == (
        "The queue is full: at most 12 sequences may run or wait, 11 do and 2 more were asked for."
    )


def test_too_much_queued_work_is_refused_with_the_numbers() -> None:
    decision = decide(_work(1, 300, 101), _state(outstanding=5, waiting=_work(1, 500, 100)), LIMITS)

    assert decision.refusal is Refusal.QUEUED_TOKENS
    assert decision.message == (
        "The queue is full: at most 1000 tokens of work may wait, 600 do and this request would add about 401."
    )
    assert decide(_work(1, 300, 100), _state(outstanding=5, waiting=_work(1, 500, 100)), LIMITS) == ADMITTED


def test_where_nothing_waits_even_work_above_the_bound_is_admitted() -> None:
    assert decide(_work(1, 5000, 5000), _state(outstanding=4), LIMITS) == ADMITTED


def test_with_free_places_the_wait_is_that_of_the_prompts_ahead() -> None:
    # 2 of 4 places: 150 prompt tokens at 0.01 s, in 2 steps of 0.5 + 2 * 0.25 + 500 * 0.001 s.
    state = _state(outstanding=2, waiting=_work(1, 150, 40))

    assert wait_seconds(state, LIMITS) == pytest.approx(1.5 + 2 * 1.5)


def test_without_free_places_the_wait_is_that_of_the_answers_ahead() -> None:
    # 7 alive and the new one: 4 find no place; one gets free every 40 / 4 steps of 0.5 + 4 * 0.25 + 0.5 s.
    state = _state(outstanding=7, waiting=_work(3, 30, 120))

    assert wait_seconds(state, LIMITS) == pytest.approx(0.3 + 4 * 10 * 2.0)


def test_nothing_is_predicted_without_a_learned_step_time_or_without_a_queue() -> None:
    assert wait_seconds(_state(outstanding=7, waiting=_work(3, 30, 120), step_time=None), LIMITS) == 0
    assert wait_seconds(_state(outstanding=4), LIMITS) == 0


@pytest.mark.parametrize(
    ("waiting", "call", "expected"),
    [
        # 5 find no place: 5 * (900 / 4) / 4 = 281.25 steps of 2 s, and 1 s of prompts; a tenth of that has to begin.
        (_work(4, 100, 900), _work(1, 50, 50), 57),
        # 2 of 1000 tokens too many: 1.127 s.
        (_work(4, 100, 900), _work(1, 1, 1), 2),
        # Half of 582 s.
        (_work(4, 70, 930), _work(1, 1, 499), 60),
    ],
)
def test_retry_after_is_the_time_until_enough_has_begun(waiting: Work, call: Work, expected: int) -> None:
    decision = decide(call, _state(outstanding=8, waiting=waiting), LIMITS)

    assert decision.refusal is Refusal.QUEUED_TOKENS
    assert decision.retry_after_seconds == expected


def test_without_a_prediction_a_refused_client_comes_back_after_a_second() -> None:
    decision = decide(_work(1, 1, 1), _state(outstanding=12, waiting=_work(8, 80, 80), step_time=None), LIMITS)

    assert (decision.refusal, decision.retry_after_seconds) == (Refusal.QUEUE_FULL, 1)


def test_work_that_cannot_begin_before_its_deadline_is_refused_at_once() -> None:
    state = _state(outstanding=2, waiting=_work(1, 150, 40))

    assert decide(_work(1, 10, 10), state, LIMITS, seconds_left=4.6) == ADMITTED
    decision = decide(_work(1, 10, 10), state, LIMITS, seconds_left=2.0)
    assert (decision.refusal, decision.retry_after_seconds) == (Refusal.DEADLINE_UNREACHABLE, 3)
    assert decision.message == "The request has 2.0 s left and could not begin before 4.5 s."


def test_what_waits_with_a_worse_priority_delays_nobody() -> None:
    queue = _work(3, 30, 120)
    behind = _state(outstanding=5, waiting=queue, ahead=_work(0, 0, 0))
    # Of 5 that live 2 wait behind: one waits ahead, with 10 prompt tokens in a step of 0.5 + 3 * 0.25 + 0.5 s.
    between = _state(outstanding=5, waiting=queue, ahead=_work(1, 10, 40))

    assert decide(_work(1, 10, 10), behind, LIMITS, seconds_left=0.1) == ADMITTED
    assert decide(_work(1, 10, 10), between, LIMITS, seconds_left=1.86) == ADMITTED
    assert decide(_work(1, 10, 10), between, LIMITS, seconds_left=1.84).refusal is Refusal.DEADLINE_UNREACHABLE


def test_a_deadline_never_refuses_where_nothing_waits_unless_it_has_passed() -> None:
    assert decide(_work(1, 10, 10), _state(outstanding=4), LIMITS, seconds_left=0.001) == ADMITTED
    assert decide(_work(1, 10, 10), _state(), LIMITS, seconds_left=0.0).refusal is Refusal.DEADLINE_EXCEEDED


def test_the_automatic_bound_is_256_full_steps() -> None:
    limits = QueueLimits(sequences=8).admission_limits(max_num_seqs=4, max_num_batched_tokens=512)

    assert limits == AdmissionLimits(
        max_sequences=12, max_queued_tokens=131_072, max_num_seqs=4, max_num_batched_tokens=512
    )
    assert (
        QueueLimits(sequences=8, tokens=77)
        .admission_limits(max_num_seqs=4, max_num_batched_tokens=512)
        .max_queued_tokens
        == 77
    )


def test_an_answer_is_expected_to_be_as_long_as_those_before_and_never_longer_than_asked() -> None:
    calls = [
        _request("short", prompt_tokens=2, max_tokens=5),
        _request("long", prompt_tokens=3, max_tokens=4000),
    ]

    assert work_of(calls, expected_output_tokens=30.2) == [("short", _work(1, 2, 5)), ("long", _work(1, 3, 31))]
    assert work_of(calls[1:], expected_output_tokens=None) == [("long", _work(1, 3, 256))]


def test_the_choices_of_one_group_have_one_prompt_to_compute() -> None:
    calls = [_request(str(index), prompt_tokens=3, max_tokens=5, group_id="g") for index in range(3)]

    assert [work.prompt_tokens for _, work in work_of(calls, expected_output_tokens=None)] == [3, 0, 0]


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.booleans(), st.integers(-1, 1), st.integers(0, 50), st.integers(1, 50)),
        max_size=40,
    )
)
def test_what_waits_is_the_sum_of_what_was_added_and_not_released(
    actions: list[tuple[str, bool, int, int, int]],
) -> None:
    waiting = WaitingWork()
    expected: dict[str, tuple[int, Work]] = {}
    for request_id, is_added, priority, prompt_tokens, output_tokens in actions:
        if is_added and request_id not in expected:
            work = _work(1, prompt_tokens, output_tokens)
            expected[request_id] = (priority, work)
            waiting.add([(request_id, work)], priority=priority)
        else:
            expected.pop(request_id, None)
            waiting.release(request_id)
        assert waiting.total == sum((work for _, work in expected.values()), Work())
        for asked in (-2, -1, 0, 1):
            ahead = [work for priority, work in expected.values() if priority <= asked]
            assert waiting.ahead_of(asked) == sum(ahead, Work())


def test_a_request_waits_only_once() -> None:
    waiting = WaitingWork()
    waiting.add([("a", _work(1, 1, 1))], priority=0)

    with pytest.raises(ValueError, match="request a waits already"):
        waiting.add([("a", _work(1, 1, 1))], priority=0)
