"""The soak's judgement of answers and memory, and a short soak of the real engine."""

from __future__ import annotations

import asyncio
import random

import pytest

from bench.soak.__main__ import soak
from bench.soak.traffic import Outcome, PlannedRequest, judge, plan_request
from bench.soak.watch import growth, is_stable
from e2e.demo_model import demo_model_path

WHOLE = '{"choices": [{"index": 0, "finish_reason": "stop"}, {"index": 1, "finish_reason": "length"}]}'
CHUNKS = (
    'data: {"choices": [{"index": 0, "finish_reason": null}]}\n\n'
    'data: {"choices": [{"index": 0, "finish_reason": "length"}]}\n\n'
)
DEADLINE = '{"error": {"code": "deadline_exceeded"}}'
CUT = '{"error": {"code": "engine_failed"}}'


def _planned(*, choices: int = 1, is_stream: bool = False, is_bad: bool = False) -> PlannedRequest:
    return PlannedRequest(
        path="/v1/completions",
        body=b"",
        headers={},
        choices=choices,
        is_stream=is_stream,
        is_bad=is_bad,
        disconnect_after_seconds=None,
    )


@pytest.mark.parametrize(
    ("planned", "status", "text", "outcome"),
    [
        (_planned(choices=2), 200, WHOLE, Outcome.ANSWERED),
        (_planned(choices=3), 200, WHOLE, Outcome.INCOMPLETE),
        (_planned(is_stream=True), 200, CHUNKS + "data: [DONE]\n\n", Outcome.ANSWERED),
        (_planned(is_stream=True), 200, CHUNKS, Outcome.INCOMPLETE),
        (_planned(is_stream=True, choices=2), 200, CHUNKS + "data: [DONE]\n\n", Outcome.INCOMPLETE),
        (_planned(is_stream=True), 200, CHUNKS + f"data: {DEADLINE}\n\n", Outcome.TOLD_DEADLINE),
        (_planned(is_stream=True), 200, CHUNKS + f"data: {CUT}\n\n", Outcome.SERVER_ERROR),
        (_planned(), 504, DEADLINE, Outcome.TOLD_DEADLINE),
        (_planned(), 500, CUT, Outcome.SERVER_ERROR),
        (_planned(), 400, '{"error": {"code": "invalid_value"}}', Outcome.SERVER_ERROR),
        (_planned(), 429, '{"error": {"code": "queue_full"}}', Outcome.TOLD_FULL),
        (_planned(is_bad=True), 400, "{}", Outcome.BAD_REFUSED),
        (_planned(is_bad=True), 500, "{}", Outcome.BAD_ACCEPTED),
        (_planned(is_bad=True), 200, WHOLE, Outcome.BAD_ACCEPTED),
    ],
)
def test_an_answer_counts_only_when_it_is_whole(
    planned: PlannedRequest, status: int, text: str, outcome: Outcome
) -> None:
    assert judge(planned, status=status, text=text).outcome is outcome


def test_the_same_dice_make_the_same_load_with_its_share_of_bad_requests_and_of_clients_that_leave() -> None:
    loads = [
        [plan_request(dice, longest_prompt_tokens=800, vocab_size=1000) for _ in range(2000)]
        for dice in (random.Random("7"), random.Random("7"))
    ]

    assert loads[0] == loads[1]
    assert 70 <= sum(planned.is_bad for planned in loads[0]) <= 130
    assert 220 <= sum(planned.disconnect_after_seconds is not None for planned in loads[0]) <= 350


def test_memory_is_compared_after_warming_up_and_a_steady_climb_is_not_stable() -> None:
    warming = [size << 20 for size in (100, 900, *[1000] * 18)]
    climbing = [(1000 + 20 * second) << 20 for second in range(20)]

    assert growth(warming) == (1000 << 20, 1000 << 20)
    assert is_stable(warming)
    assert not is_stable(climbing)


@pytest.mark.model
def test_a_short_soak_of_the_real_engine_violates_nothing() -> None:
    assert asyncio.run(soak(model=demo_model_path(), seconds=20, seed=2)) == []
