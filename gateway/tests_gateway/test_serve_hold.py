"""Requests that wait: for a first engine, for room, for their turn, and not for ever."""

from __future__ import annotations

import asyncio
from typing import Any

from modelfleet_gateway.exchange import HEARTBEAT

from tests_gateway.mock_engine import MockEngine, mock_engine, stream_events
from tests_gateway.serving import Served, config_of, serving, until

_WHOLE_STREAM = b"".join(stream_events()) + b"data: [DONE]\n\n"


async def _body(gateway: Served, **fields: Any) -> bytes:
    async with gateway.post(**fields) as response:
        body: bytes = await response.read()
        return body


async def _waiting(gateway: Served, count: int) -> None:
    await until(lambda: gateway.gateway.dispatcher.waiting == count)


async def test_requests_of_a_model_without_engines_are_all_answered_in_order_once_one_is_ready() -> None:
    engine = MockEngine(max_num_seqs=1)
    async with mock_engine(engine), serving() as gateway:
        requests = []
        for number in range(20):
            requests.append(asyncio.create_task(_body(gateway, user=str(number))))
            await _waiting(gateway, number + 1)
        gateway.source.change(config_of([engine]))
        answers = await asyncio.gather(*requests)
        assert all(b"Once upon a" in answer for answer in answers)
        assert [received.body["user"] for received in engine.received] == [str(number) for number in range(20)]
        assert engine.most_running == 1


async def test_a_held_stream_gets_heartbeats_and_then_its_answer() -> None:
    engine = MockEngine(is_ready=False)
    async with serving(engine, routable=0) as gateway:
        request = asyncio.create_task(_body(gateway, stream=True))
        await asyncio.sleep(0.18)
        engine.is_ready = True
        body = await request
    beats = body.count(HEARTBEAT)
    assert 2 <= beats <= 6
    assert body == HEARTBEAT * beats + _WHOLE_STREAM


async def test_after_a_heartbeat_errors_are_events_of_the_stream() -> None:
    hold = {"hold": {"timeoutSeconds": 0.12}}
    async with serving(model=hold) as gateway, gateway.post(stream=True) as response:
        assert response.status == 200
        body = await response.read()
    assert body.startswith(HEARTBEAT)
    assert b'data: {"error":{"message":"The request waited 0.12 s for the model chat.default' in body
    assert b'"code":"model_starting"' in body


async def test_a_whole_answer_that_waited_too_long_is_503_with_retry_after() -> None:
    async with serving(model={"hold": {"timeoutSeconds": 0.1}}) as gateway, gateway.post() as response:
        assert response.status == 503
        assert int(response.headers["Retry-After"]) >= 1


async def test_past_the_limit_of_waiting_requests_a_model_that_starts_is_503_and_a_full_one_429() -> None:
    engine = MockEngine(max_num_seqs=1, gate=asyncio.Event())
    async with mock_engine(engine), serving(model={"hold": {"maxRequests": 1}}) as gateway:
        first = asyncio.create_task(_body(gateway))
        await _waiting(gateway, 1)
        async with gateway.post() as response:
            assert response.status == 503
            assert 25 <= int(response.headers["Retry-After"]) <= 30
        gateway.source.change(config_of([engine], model={"hold": {"maxRequests": 1}}))
        await until(lambda: engine.running == 1)
        second = asyncio.create_task(_body(gateway))
        await _waiting(gateway, 1)
        async with gateway.post() as response:
            assert response.status == 429
            assert (await response.json())["error"]["code"] == "queue_full"
        assert engine.gate is not None
        engine.gate.set()
        assert b"Once" in await first
        assert b"Once" in await second


async def test_no_engine_gets_more_at_a_time_than_it_has_room_for() -> None:
    engine = MockEngine(max_num_seqs=3, token_seconds=0.005)
    async with serving(engine) as gateway:
        answers = await asyncio.gather(*[_body(gateway, stream=True) for _ in range(20)])
        assert [answer.replace(HEARTBEAT, b"") for answer in answers] == [_WHOLE_STREAM] * 20
        assert engine.most_running == 3
        assert gateway.pool.statistics.held == 17


async def test_a_lower_priority_number_goes_first() -> None:
    engine = MockEngine(max_num_seqs=1, gate=asyncio.Event())
    async with serving(engine) as gateway:
        requests = [asyncio.create_task(_body(gateway, user="running"))]
        await until(lambda: engine.running == 1)
        for user, priority in (("late", 5), ("soon", 1)):
            requests.append(asyncio.create_task(_body(gateway, user=user, priority=priority)))
            await _waiting(gateway, len(requests) - 1)
        assert engine.gate is not None
        engine.gate.set()
        await asyncio.gather(*requests)
    assert [received.body["user"] for received in engine.received] == ["running", "soon", "late"]


async def test_a_draining_endpoint_gets_nothing_new() -> None:
    one, other = MockEngine(), MockEngine()
    async with serving(one, other) as gateway:
        one.is_draining = True
        await gateway.routable(1)
        for _ in range(5):
            await _body(gateway)
        assert len(one.received) == 0
        assert len(other.received) == 5
