"""The bridge between asyncio and the engine's thread: routing, refusal, abort, failure."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from modelfleet_api.protocol import StepTime
from modelfleet_engine.admission import QueueLimits, Work
from modelfleet_engine.bridge import Bridge, Generation
from modelfleet_engine.errors import GenerationCutError, RequestError
from modelfleet_engine.load import RequestCounts
from modelfleet_engine.request import FinishReason
from modelfleet_engine.scheduler import Scheduler

from tests_engine.fake_device import FakeDevice, expected_tokens
from tests_engine.scheduling import MODEL, VOCAB_SIZE, limits, request


def _device(
    *, gate: threading.Event | None = None, fail_at_step: int | None = None, step_seconds: float = 0.0
) -> FakeDevice:
    return FakeDevice(
        model=MODEL,
        vocab_size=VOCAB_SIZE,
        kv_blocks=64,
        block_tokens=4,
        gate=gate,
        fail_at_step=fail_at_step,
        step_seconds=step_seconds,
    )


@asynccontextmanager
async def _bridge(
    device: FakeDevice,
    *,
    max_queued: int = 4,
    max_queued_tokens: int | None = None,
    on_failure: Callable[[Exception], None] | None = None,
) -> AsyncIterator[Bridge]:
    bridge = Bridge(
        device=device,
        scheduler=Scheduler(limits(seqs=2)),
        counts=RequestCounts(),
        queue=QueueLimits(sequences=max_queued, tokens=max_queued_tokens),
        on_failure=on_failure or (lambda error: pytest.fail(str(error))),
    )
    try:
        yield bridge
    finally:
        bridge.close()
        while bridge.is_alive():
            await asyncio.sleep(0.001)


async def _collect(generation: Generation, choices: int = 1) -> dict[int, list[int]]:
    tokens: dict[int, list[int]] = {index: [] for index in range(choices)}
    unfinished = choices
    while unfinished:
        for news in await generation.next_tokens():
            tokens[news.index].extend(news.token_ids)
            unfinished -= news.finish_reason is not None
    return tokens


async def test_each_call_gets_its_own_tokens_in_order() -> None:
    async with _bridge(_device()) as bridge:
        first = bridge.submit([request("a", max_tokens=9), request("b", prompt=(7,), max_tokens=5)])
        second = bridge.submit([request("c", prompt=(8, 8), max_tokens=12)])

        results = await asyncio.gather(_collect(first, 2), _collect(second))

    assert results[0] == {
        0: expected_tokens(MODEL, (1, 2, 3), max_tokens=9),
        1: expected_tokens(MODEL, (7,), max_tokens=5),
    }
    assert results[1] == {0: expected_tokens(MODEL, (8, 8), max_tokens=12)}
    assert bridge.outstanding == 0


async def test_a_full_queue_is_a_429_with_a_hint_when_to_return() -> None:
    gate = threading.Event()
    async with _bridge(_device(gate=gate), max_queued=1) as bridge:
        generation = bridge.submit([request("a"), request("b"), request("c")])

        with pytest.raises(RequestError) as refusal:
            bridge.submit([request("d")])

        assert (refusal.value.status, refusal.value.code) == (429, "queue_full")
        assert refusal.value.retry_after_seconds == 1
        assert "at most 3 sequences may run or wait, 3 do and 1 more" in refusal.value.message
        gate.set()
        await _collect(generation, 3)
        await _collect(bridge.submit([request("d")]))


async def test_the_queue_is_bounded_by_tokens_of_work_but_takes_anything_while_nothing_waits() -> None:
    gate = threading.Event()
    async with _bridge(_device(gate=gate), max_queued_tokens=10) as bridge:
        # 3 prompt tokens and an answer of 8: more than the bound.
        first = bridge.submit([request("a")])
        assert bridge.waiting_work == Work(sequences=1, prompt_tokens=3, output_tokens=8)

        with pytest.raises(RequestError) as refusal:
            bridge.submit([request("b", prompt=(1,), max_tokens=1)])

        assert (refusal.value.status, refusal.value.code) == (429, "queued_tokens")
        assert refusal.value.retry_after_seconds == 1
        gate.set()
        await _collect(first)
        await _collect(bridge.submit([request("b", prompt=(1,), max_tokens=1)]))
        assert bridge.waiting_work == Work()


async def _finish(bridge: Bridge, generation: Generation) -> None:
    await _collect(generation, 3)


async def _close(bridge: Bridge, generation: Generation) -> None:
    generation.close()


async def _abort_each_twice(bridge: Bridge, generation: Generation) -> None:
    for index in (0, 1, 2, 0, 1, 2):
        generation.abort_choice(index)


async def _cut(bridge: Bridge, generation: Generation) -> None:
    bridge.cut_all(GenerationCutError("over", status=503, code="engine_draining"))


@pytest.mark.parametrize("end", [_finish, _close, _abort_each_twice, _cut])
async def test_what_waits_is_released_once_however_it_ends(
    end: Callable[[Bridge, Generation], Awaitable[None]],
) -> None:
    async with _bridge(_device(step_seconds=0.001)) as bridge:
        # Two places: the third waits until one of the others is done.
        generation = bridge.submit([request(name, max_tokens=30) for name in "abc"])
        assert bridge.waiting_work == Work(sequences=3, prompt_tokens=9, output_tokens=90)
        await generation.next_tokens()

        await end(bridge, generation)

        assert bridge.waiting_work == Work()


async def test_a_deadline_that_has_passed_or_cannot_be_met_is_refused_before_anything_is_computed() -> None:
    gate = threading.Event()
    step_time = StepTime(
        base_seconds=5.0,
        per_sequence_seconds=0.0,
        per_prefill_token_seconds=0.0,
        per_kv_token_seconds=0.0,
        observed_steps=9,
    )
    async with _bridge(_device(gate=gate)) as bridge:
        late = replace(request("late"), deadline_seconds=time.monotonic() - 1)
        with pytest.raises(RequestError) as refusal:
            bridge.submit([late])
        assert (refusal.value.status, refusal.value.code) == (504, "deadline_exceeded")

        bridge.stats = replace(bridge.stats, step_time=step_time)
        hopeful = replace(request("hopeful"), deadline_seconds=time.monotonic() + 2)
        first = bridge.submit([hopeful])
        with pytest.raises(RequestError) as refusal:
            # One step of 5 s has to be computed before it.
            bridge.submit([replace(hopeful, request_id="hopeless")])
        assert (refusal.value.status, refusal.value.code) == (429, "deadline_unreachable")
        assert bridge.outstanding == 1
        urgent = bridge.submit([replace(hopeful, request_id="urgent", priority=-1)])
        gate.set()
        await _collect(first)
        await _collect(urgent)


async def test_closing_a_generation_aborts_what_still_runs() -> None:
    # A device that takes no time could be done with all steps before the abort reaches it.
    async with _bridge(_device(step_seconds=0.001)) as bridge:
        generation = bridge.submit([request("a", max_tokens=100)])
        await generation.next_tokens()

        generation.close()

        assert bridge.outstanding == 0
        await _collect(bridge.submit([request("b", max_tokens=3)]))
        while bridge.stats.scheduler.running:
            await asyncio.sleep(0.001)
        assert bridge.stats.scheduler.kv_blocks_used == 0
        assert bridge.stats.scheduler.steps < 100


async def test_an_engine_failure_reaches_every_call_and_the_server() -> None:
    failures: list[Exception] = []
    async with _bridge(_device(fail_at_step=4), on_failure=failures.append) as bridge:
        generation = bridge.submit([request("a", max_tokens=50)])

        with pytest.raises(GenerationCutError) as cut:
            await _collect(generation)

        assert (cut.value.status, cut.value.code) == (500, "engine_failed")
        assert [str(failure) for failure in failures] == ["the fake device broke"]
        with pytest.raises(GenerationCutError):
            bridge.submit([request("b")])


async def test_cutting_tells_every_call_and_admits_no_more() -> None:
    async with _bridge(_device()) as bridge:
        generations = [bridge.submit([request(name, max_tokens=100)]) for name in "abc"]
        await generations[0].next_tokens()
        error = GenerationCutError("over", status=503, code="engine_draining")

        assert bridge.cut_all(error) == 3

        for generation in generations:
            with pytest.raises(GenerationCutError, match="over"):
                await _collect(generation)
        with pytest.raises(GenerationCutError, match="over"):
            bridge.submit([request("d")])


async def test_the_last_token_comes_with_the_reason_why_the_sequence_ended() -> None:
    stop = frozenset({expected_tokens(MODEL, (1, 2, 3), max_tokens=3)[2]})
    async with _bridge(_device()) as bridge:
        generation = bridge.submit([request("a", max_tokens=50, stop_token_ids=stop)])
        tokens: list[int] = []
        reason: FinishReason | None = None
        while reason is None:
            (news,) = await generation.next_tokens()
            assert len(news.at_seconds) == len(news.token_ids)
            tokens, reason = tokens + news.token_ids, news.finish_reason

    assert (len(tokens), reason) == (3, FinishReason.STOP)
