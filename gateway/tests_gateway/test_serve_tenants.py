"""Who may ask for what, and how much of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest

from tests_gateway.mock_engine import MockEngine
from tests_gateway.serving import MESSAGES, config_of, key_hash, serving, until


def _tenant(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "keyHashes": [key_hash(f"key-of-{name}")], **fields}


def _key(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer key-of-{name}"}


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic a2V5"}])
async def test_without_a_key_that_is_known_a_request_is_401_in_openais_shape(headers: dict[str, str]) -> None:
    engine = MockEngine()
    async with serving(engine, anonymous=None, tenants=[_tenant("a")]) as gateway:
        async with gateway.post(headers=headers) as response:
            error = (await response.json())["error"]
            assert response.status == 401
            assert response.headers["WWW-Authenticate"] == "Bearer"
        assert error["code"] == "invalid_api_key"
        assert error["type"] == "authentication_error"
        async with gateway.http.get(gateway.url + "/v1/models") as response:
            assert response.status == 401
        assert engine.received == []


async def test_a_known_key_is_let_in_and_never_reaches_the_engine() -> None:
    engine = MockEngine()
    async with serving(engine, anonymous=None, tenants=[_tenant("a")]) as gateway:
        client = gateway.client("key-of-a")
        await client.chat.completions.create(model="org/chat", messages=MESSAGES)
        await client.close()
    assert "authorization" not in engine.received[0].headers
    assert b"key-of-a" not in engine.received[0].raw


async def test_where_keys_exist_a_wrong_one_is_refused_even_if_everybody_may_ask() -> None:
    async with serving(MockEngine(), tenants=[_tenant("a")]) as gateway:
        async with gateway.post() as response:
            assert response.status == 200
        async with gateway.post(headers={"Authorization": "Bearer wrong"}) as response:
            assert response.status == 401


async def test_a_model_that_is_not_allowed_is_403_and_not_listed() -> None:
    async with serving(
        MockEngine(), anonymous=None, tenants=[_tenant("a", allowedModels=["other.default"])]
    ) as gateway:
        async with gateway.post(headers=_key("a")) as response:
            assert response.status == 403
            assert (await response.json())["error"]["code"] == "model_not_allowed"
        async with gateway.post(headers=_key("a"), model="chat.defaul") as response:
            assert response.status == 404
            assert "chat.default" not in (await response.json())["error"]["message"].replace("'chat.defaul'", "")
        async with gateway.http.get(gateway.url + "/v1/models", headers=_key("a")) as response:
            assert (await response.json())["data"] == []


async def test_over_the_requests_of_a_minute_the_client_is_told_when_to_come_back() -> None:
    async with serving(MockEngine(), anonymous=None, tenants=[_tenant("a", requestsPerMinute=2)]) as gateway:
        for left in ("1", "0"):
            async with gateway.post(headers=_key("a")) as response:
                assert response.status == 200
                assert response.headers["x-ratelimit-limit-requests"] == "2"
                assert response.headers["x-ratelimit-remaining-requests"] == left
        async with gateway.post(headers=_key("a")) as response:
            assert response.status == 429
            assert 1 <= int(response.headers["Retry-After"]) <= 60
            assert (await response.json())["error"]["code"] == "rate_limit_exceeded"
            assert response.headers["x-ratelimit-remaining-requests"] == "0"


async def test_tokens_are_billed_by_the_engines_word_for_streams_and_whole_answers() -> None:
    async with serving(MockEngine(), anonymous=None, tenants=[_tenant("a", tokensPerMinute=1000)]) as gateway:
        remaining = []
        for stream in (False, True, False):
            async with gateway.post(headers=_key("a"), stream=stream, max_tokens=5) as response:
                await response.read()
            await until(lambda: gateway.gateway.public.in_flight == 0)
            tenant = gateway.gateway.tenants.identify("Bearer key-of-a")
            remaining.append(int(sum(tenant.quota.checkpoint().tokens.values())))
        assert remaining == [10, 20, 30]


async def test_no_more_requests_at_a_time_than_allowed() -> None:
    engine = MockEngine(gate=asyncio.Event())
    async with serving(engine, anonymous=None, tenants=[_tenant("a", maxConcurrent=1)]) as gateway:
        first = asyncio.create_task(_status(gateway.post(headers=_key("a"))))
        await until(lambda: engine.running == 1)
        assert await _status(gateway.post(headers=_key("a"))) == 429
        assert engine.gate is not None
        engine.gate.set()
        assert await first == 200
        assert await _status(gateway.post(headers=_key("a"))) == 200


async def test_a_client_that_goes_gives_its_place_back() -> None:
    engine = MockEngine(gate=asyncio.Event())
    async with serving(engine, anonymous=None, tenants=[_tenant("a", maxConcurrent=1)]) as gateway:
        first = asyncio.create_task(_status(gateway.post(headers=_key("a"))))
        await until(lambda: engine.running == 1)
        first.cancel()
        await until(lambda: gateway.gateway.public.in_flight == 0)
        assert engine.gate is not None
        engine.gate.set()
        assert await _status(gateway.post(headers=_key("a"))) == 200


async def test_a_key_is_rotated_without_a_restart() -> None:
    async with serving(engine := MockEngine(), anonymous=None, tenants=[_tenant("a", requestsPerMinute=3)]) as gateway:
        assert await _status(gateway.post(headers=_key("a"))) == 200
        both = {**_tenant("a", requestsPerMinute=3), "keyHashes": [key_hash("key-of-a"), key_hash("key-of-b")]}
        gateway.source.change(config_of([engine], anonymous=None, tenants=[both]))
        assert await _status(gateway.post(headers=_key("b"))) == 200
        gateway.source.change(
            config_of([engine], anonymous=None, tenants=[{**both, "keyHashes": [key_hash("key-of-b")]}])
        )
        assert await _status(gateway.post(headers=_key("a"))) == 401
        # The quota is the tenant's, whatever its keys: two of three are used.
        assert await _status(gateway.post(headers=_key("b"))) == 200
        assert await _status(gateway.post(headers=_key("b"))) == 429


async def test_the_tokens_of_the_day_outlive_a_restart(tmp_path: Path) -> None:
    tenants = [_tenant("a", tokensPerDay=300)]
    settings: dict[str, Any] = {"anonymous": None, "tenants": tenants, "stateFile": str(tmp_path / "state.json")}
    async with serving(MockEngine(), **settings) as gateway:
        assert await _status(gateway.post(headers=_key("a"), max_tokens=200)) == 200
    async with serving(MockEngine(), **settings) as gateway:
        async with gateway.post(headers=_key("a"), max_tokens=288) as response:
            assert response.status == 429
            assert (await response.json())["error"]["code"] == "insufficient_quota"
        # Ten were used, by the engine's word; these fit.
        assert await _status(gateway.post(headers=_key("a"), max_tokens=200)) == 200
    (tmp_path / "state.json").write_text("{broken")
    async with serving(MockEngine(), **settings) as gateway:
        assert await _status(gateway.post(headers=_key("a"), max_tokens=200)) == 200


async def test_the_tenants_salt_reaches_the_engine_and_the_hashes() -> None:
    messages = [{"role": "user", "content": "z" * 2000}]
    tenants = [_tenant("a", salt="pepper"), _tenant("b")]
    engine = MockEngine()
    async with serving(engine, anonymous=None, tenants=tenants) as gateway:
        for name in ("a", "b"):
            assert await _status(gateway.post(headers=_key(name), messages=messages)) == 200
    salted, plain = (received.headers for received in engine.received)
    assert salted["x-modelfleet-salt"] == "pepper"
    assert "x-modelfleet-salt" not in plain
    assert salted["x-modelfleet-prefix"] != plain["x-modelfleet-prefix"]


async def test_a_priority_is_clamped_to_the_tenants() -> None:
    engine = MockEngine()
    async with serving(engine, anonymous={"priority": 3}) as gateway:
        for priority in (-5, 7, None):
            assert await _status(gateway.post(priority=priority)) == 200
    assert [received.body.get("priority") for received in engine.received] == [3, 7, None]


async def test_the_openai_client_names_the_errors() -> None:
    async with serving(MockEngine(), anonymous=None, tenants=[_tenant("a", requestsPerMinute=1)]) as gateway:
        async with gateway.client("wrong") as client:
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()
        async with gateway.client("key-of-a") as client:
            await client.chat.completions.create(model="org/chat", messages=MESSAGES)
            with pytest.raises(openai.RateLimitError):
                await client.chat.completions.create(model="org/chat", messages=MESSAGES)


async def _status(context: Any) -> int:
    async with context as response:
        await response.read()
        status: int = response.status
        return status
