"""Engines that fail: what is made good elsewhere, what clients see of the rest."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import openai
import pytest
from modelfleet_gateway.circuit import CircuitState

from tests_gateway.mock_engine import Behaviour, MockEngine, Received, mock_engine, stream_events
from tests_gateway.serving import MESSAGES, config_of, served, serving, until

_WHOLE_STREAM = b"".join(stream_events()) + b"data: [DONE]\n\n"
_BEFORE_FIRST_BYTE = [Behaviour.DIE_AT_ONCE, Behaviour.DIE_AFTER_HEAD, Behaviour.DRAINING]


def _first_fails(behaviour: Behaviour) -> tuple[MockEngine, MockEngine]:
    """Two engines; whichever is asked first behaves so, the other answers."""
    asked: list[Received] = []

    def on_request(received: Received) -> Behaviour:
        asked.append(received)
        return behaviour if len(asked) == 1 else Behaviour.ANSWER

    return MockEngine(on_request=on_request), MockEngine(on_request=on_request)


@pytest.mark.parametrize("behaviour", _BEFORE_FIRST_BYTE)
async def test_what_fails_before_the_first_byte_is_answered_by_another_engine(behaviour: Behaviour) -> None:
    one, other = _first_fails(behaviour)
    async with serving(one, other) as gateway:
        async with gateway.post(stream=True) as response:
            assert response.status == 200
            assert await response.read() == _WHOLE_STREAM
        assert len(one.received) == len(other.received) == 1


async def test_a_whole_answer_that_breaks_is_answered_by_another_engine() -> None:
    one, other = _first_fails(Behaviour.DIE_AT_ONCE)
    async with serving(one, other) as gateway:
        async with gateway.post() as response:
            assert response.status == 200
        assert gateway.pool.statistics.retries == 1


@pytest.mark.parametrize("behaviour", [Behaviour.DIE_AFTER_FIRST, Behaviour.DIE_INSIDE_EVENT, Behaviour.STOP_SHORT])
async def test_a_stream_that_breaks_after_its_first_byte_ends_with_an_error_event(behaviour: Behaviour) -> None:
    engine = MockEngine(behaviour=behaviour)
    async with serving(engine) as gateway:
        async with gateway.post(stream=True) as response:
            body = await response.read()
        error = (
            b'data: {"error":{"message":"The connection to the engine broke.","type":"server_error",'
            b'"param":null,"code":"engine_lost"}}\n\n'
        )
        assert body == stream_events()[0] + error
        assert gateway.pool.statistics.cut_streams == 1
        assert len(engine.received) == 1


async def test_the_openai_client_sees_a_broken_stream_as_an_error() -> None:
    engine = MockEngine(behaviour=Behaviour.DIE_AFTER_FIRST)
    async with serving(engine) as gateway, gateway.client() as client:
        stream = await client.chat.completions.create(model="org/chat", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="The connection to the engine broke"):
            [chunk async for chunk in stream]


async def test_an_engines_own_error_event_is_the_last_word() -> None:
    engine = MockEngine(behaviour=Behaviour.ERROR_EVENT)
    async with serving(engine) as gateway:
        async with gateway.post(stream=True) as response:
            body = await response.read()
        assert body.count(b'"error"') == 1
        assert body.endswith(b'"code":"cut"}}\n\n')
        assert gateway.pool.statistics.cut_streams == 0


async def test_a_draining_engine_costs_neither_budget_nor_circuit_and_is_left_alone() -> None:
    draining = MockEngine(behaviour=Behaviour.DRAINING)
    async with serving(draining, MockEngine(), probeSeconds=30) as gateway:
        for _ in range(12):
            async with gateway.post() as response:
                assert response.status == 200
        assert gateway.pool.states["e0"].circuit.state is CircuitState.CLOSED
        assert len(draining.received) <= 1


async def test_a_full_engines_refusal_is_passed_on_where_there_is_no_other() -> None:
    engine = MockEngine(behaviour=Behaviour.BUSY)
    async with serving(engine) as gateway:
        async with gateway.post() as response:
            assert response.status == 429
            assert response.headers["Retry-After"] == "7"
            assert (await response.json())["error"]["code"] == "queue_full"
        assert len(engine.received) == 1


async def test_a_bug_of_an_engine_is_passed_on_and_opens_its_circuit_when_it_goes_on() -> None:
    engine = MockEngine(behaviour=Behaviour.BROKEN)
    async with serving(engine, probeSeconds=30, model={"hold": {"timeoutSeconds": 0.2}}) as gateway:
        for _ in range(3):
            async with gateway.post() as response:
                assert response.status == 500
        async with gateway.post() as response:
            assert response.status == 503
            assert (await response.json())["error"]["code"] == "model_starting"
        assert len(engine.received) == 3


async def test_at_most_two_retries_are_made() -> None:
    engines = [MockEngine(behaviour=Behaviour.DIE_AT_ONCE) for _ in range(5)]
    async with serving(*engines) as gateway, gateway.post() as response:
        assert response.status == 502
        assert (await response.json())["error"]["code"] == "engine_lost"
    assert sum(len(engine.received) for engine in engines) == 3


async def test_an_engine_that_is_gone_is_waited_for_and_found_again() -> None:
    engine = MockEngine()
    async with mock_engine(engine):
        pass
    port = int(engine.url.rpartition(":")[2])
    async with served(config_of([engine]), routable=0) as gateway:
        request = asyncio.create_task(_status(gateway.post()))
        await until(lambda: gateway.gateway.dispatcher.waiting == 1)
        async with mock_engine(engine, port=port):
            assert await request == 200


async def test_a_hanging_engine_is_given_up_after_the_first_byte_timeout() -> None:
    timeouts = {"firstByteSeconds": 0.1}
    one, other = _first_fails(Behaviour.HANG)
    async with serving(one, other, timeouts=timeouts) as gateway:
        started = time.monotonic()
        async with gateway.post() as response:
            assert response.status == 200
        assert 0.1 <= time.monotonic() - started < 0.5
        await until(lambda: len(one.cancelled_at) + len(other.cancelled_at) == 1)


async def test_a_stream_that_falls_silent_ends_with_an_error_event() -> None:
    engine = MockEngine(behaviour=Behaviour.HANG_AFTER_FIRST)
    async with serving(engine, timeouts={"idleSeconds": 0.1}) as gateway:
        async with gateway.post(stream=True) as response:
            body = await response.read()
        assert body.startswith(stream_events()[0])
        assert b'"code":"engine_idle_timeout"' in body
        await until(lambda: len(engine.cancelled_at) == 1)


async def test_nothing_is_left_in_flight_after_any_failure() -> None:
    for behaviour in Behaviour:
        if behaviour in (Behaviour.HANG, Behaviour.HANG_AFTER_FIRST, Behaviour.DRAINING):
            continue
        engine = MockEngine(behaviour=behaviour)
        hold = {"hold": {"timeoutSeconds": 0.3}}
        async with serving(engine, model=hold) as gateway:
            for stream in (False, True):
                async with gateway.post(stream=stream) as response:
                    await response.read()
            assert gateway.pool.book.in_flight("e0") == 0
            assert gateway.gateway.public.in_flight == 0
            assert gateway.gateway.dispatcher.waiting == 0


async def _status(context: Any) -> int:
    async with context as response:
        await response.read()
        status: int = response.status
        return status
