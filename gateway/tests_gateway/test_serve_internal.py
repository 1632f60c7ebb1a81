"""What operator, autoscaler and Prometheus are told."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from pathlib import Path
from typing import Any

from modelfleet_gateway.demand import Demand, EndpointPhase, Endpoints

from tests_gateway.mock_engine import MockEngine
from tests_gateway.serving import Served, config_of, serving, until


async def _demand(gateway: Served, query: str = "") -> Demand:
    async with gateway.http.get(f"{gateway.internal_url}/internal/demand{query}") as response:
        assert response.status == 200
        return Demand.model_validate_json(await response.read())


async def _endpoints(gateway: Served, query: str = "") -> Endpoints:
    async with gateway.http.get(f"{gateway.internal_url}/internal/endpoints{query}") as response:
        assert response.status == 200
        return Endpoints.model_validate_json(await response.read())


async def test_demand_for_a_model_at_zero_is_announced_at_once_to_whoever_polls() -> None:
    async with serving() as gateway:
        before = await _demand(gateway)
        assert before.models[0].held == 0
        poll = asyncio.create_task(_demand(gateway, f"?after={before.after}&timeout=5"))
        await asyncio.sleep(0.05)
        assert not poll.done()
        started = time.monotonic()
        held = asyncio.create_task(_body(gateway.post()))
        found = await poll
        assert time.monotonic() - started < 0.1
        assert [(model.model, model.held, model.arrivals) for model in found.models] == [("chat.default", 1, 1)]
        assert found.models[0].queued_tokens > 256
        held.cancel()
        await until(lambda: gateway.gateway.dispatcher.waiting == 0)


async def test_a_poll_without_news_is_answered_when_its_time_is_over() -> None:
    async with serving() as gateway:
        before = await _demand(gateway)
        assert (await _demand(gateway, f"?after={before.after}&timeout=0.05")).after == before.after
        async with gateway.http.get(f"{gateway.internal_url}/internal/demand?after=x") as response:
            assert response.status == 400


async def test_a_drain_mark_is_acknowledged_and_its_requests_are_counted_down() -> None:
    engine = MockEngine(gate=asyncio.Event())
    async with serving(engine) as gateway:
        request = asyncio.create_task(_body(gateway.post()))
        await until(lambda: engine.running == 1)
        before = await _endpoints(gateway)
        assert before.endpoints["e0"].phase is EndpointPhase.ACCEPTING
        assert before.endpoints["e0"].in_flight == 1
        poll = asyncio.create_task(_endpoints(gateway, f"?after={before.after}&timeout=5"))
        snapshot = gateway.source.current
        marked = dataclasses.replace(snapshot.fleet.endpoints["e0"], is_draining=True)
        gateway.source.publish(
            dataclasses.replace(snapshot, fleet=dataclasses.replace(snapshot.fleet, endpoints={"e0": marked}))
        )
        acknowledged = await poll
        assert acknowledged.endpoints["e0"].phase is EndpointPhase.DRAINING
        assert acknowledged.endpoints["e0"].in_flight == 1
        assert engine.gate is not None
        engine.gate.set()
        done = await _endpoints(gateway, f"?after={acknowledged.after}&timeout=5")
        assert done.endpoints["e0"].in_flight == 0
        assert await request == 200


async def test_the_internal_listener_asks_for_the_key_and_engines_are_shown_it(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("first\nsecond\n")
    internal = {"listen": "127.0.0.1:0", "keyFile": str(key_file)}
    engine = MockEngine()
    async with serving(engine, internal=internal) as gateway:
        for key, status in ((None, 401), ("wrong", 401), ("first", 200), ("second", 200)):
            headers = {} if key is None else {"x-modelfleet-key": key}
            async with gateway.http.get(gateway.internal_url + "/internal/endpoints", headers=headers) as response:
                assert response.status == status
        for path in ("/metrics", "/ready", "/health"):
            async with gateway.http.get(gateway.internal_url + path) as response:
                assert response.status == 200
        assert await _body(gateway.post(headers={"x-modelfleet-key": "forged"})) == 200
        assert engine.received[0].headers["x-modelfleet-key"] == "first"


async def test_metrics_count_requests_by_model_tenant_and_status() -> None:
    async with serving(MockEngine()) as gateway:
        await _body(gateway.post(stream=True))
        await _body(gateway.post(model="none"))
        async with gateway.http.get(gateway.internal_url + "/metrics") as response:
            text = await response.text()
    lines = text.splitlines()
    assert 'modelfleet_gateway_requests_total{model="chat.default",status="200",tenant="anonymous"} 1.0' in lines
    assert 'modelfleet_gateway_requests_total{model="",status="404",tenant="anonymous"} 1.0' in lines
    assert 'modelfleet_gateway_time_to_first_token_seconds_count{model="chat.default"} 1.0' in lines
    assert 'modelfleet_gateway_prefix_hit_tokens_total{model="chat.default"} 4.0' in lines
    assert 'modelfleet_gateway_routable_endpoints{model="chat.default"} 1.0' in lines


async def test_a_model_that_comes_and_goes_takes_its_held_requests_along() -> None:
    async with serving() as gateway:
        held = asyncio.create_task(_body(gateway.post()))
        await until(lambda: gateway.gateway.dispatcher.waiting == 1)
        empty = config_of([]).model_copy(update={"models": ()})
        gateway.source.change(empty)
        assert await held == 404
        assert gateway.gateway.dispatcher.pools == {}


async def test_a_suspended_model_holds_nothing() -> None:
    async with serving() as gateway:
        snapshot = gateway.source.current
        models = {key: dataclasses.replace(model, is_suspended=True) for key, model in snapshot.fleet.models.items()}
        gateway.source.publish(dataclasses.replace(snapshot, fleet=dataclasses.replace(snapshot.fleet, models=models)))
        assert await _body(gateway.post()) == 503


async def _body(context: Any) -> int:
    async with context as response:
        await response.read()
        status: int = response.status
        return status
