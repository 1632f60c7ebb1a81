"""Answers and streams through a whole gateway: what the client gets, what the engine gets."""

from __future__ import annotations

import asyncio
import io
import itertools
import time
from typing import Any

import openai
import orjson
import pytest

from tests_gateway.mock_engine import Behaviour, MockEngine, stream_events
from tests_gateway.serving import CHAT, MESSAGES, serving, until


async def test_the_openai_client_gets_a_whole_answer() -> None:
    engine = MockEngine()
    async with serving(engine) as gateway, gateway.client() as client:
        answer = await client.chat.completions.create(model="org/chat", messages=MESSAGES)
        assert answer.choices[0].message.content == "Once upon a"
        assert answer.usage is not None
        assert answer.usage.total_tokens == 10


async def test_the_openai_client_gets_a_stream() -> None:
    engine = MockEngine()
    async with serving(engine) as gateway, gateway.client() as client:
        stream = await client.chat.completions.create(model="chat.default", messages=MESSAGES, stream=True)
        words = [chunk.choices[0].delta.content async for chunk in stream]
        assert words == ["Once", " upon", " a"]


async def test_a_stream_is_the_engines_byte_for_byte_without_the_usage_comment() -> None:
    engine = MockEngine()
    async with serving(engine) as gateway:
        async with gateway.post(stream=True) as response:
            body = await response.read()
            assert response.headers["Content-Type"] == "text/event-stream"
        assert body == b"".join(stream_events()) + b"data: [DONE]\n\n"
        assert engine.received[0].headers["x-modelfleet-usage"] == "1"


async def test_each_chunk_of_an_engine_reaches_the_client_when_it_comes() -> None:
    engine = MockEngine(token_seconds=0.05)
    async with serving(engine) as gateway:
        times = []
        async with gateway.post(stream=True) as response:
            async for _ in response.content.iter_any():
                times.append(time.monotonic())
        assert len(times) == 4
        assert all(later - earlier > 0.02 for earlier, later in itertools.pairwise(times))


async def test_the_engine_gets_its_own_model_name_and_no_header_of_the_client_that_is_not_its_business() -> None:
    engine = MockEngine()
    async with serving(engine) as gateway:
        headers = {
            "Authorization": "Bearer secret",
            "Cookie": "a=b",
            "x-modelfleet-salt": "forged",
            "x-modelfleet-key": "forged",
            "x-modelfleet-prefix": "forged",
            "x-request-id": "mine-1",
            "traceparent": "00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-bbbbbbbbbbbbbbbb-01",
        }
        async with gateway.post(headers=headers) as response:
            assert response.status == 200
            assert response.headers["x-request-id"] == "mine-1"
            assert response.headers["x-engine"] == "kept"
            assert "x-modelfleet-own" not in response.headers
    received = engine.received[0]
    assert received.body["model"] == "org/chat"
    assert sorted(received.headers) == [
        "accept", "content-length", "content-type", "host", "traceparent", "x-request-id",
    ]  # fmt: skip
    assert received.headers["x-request-id"] == "mine-1"


async def test_a_body_that_needs_no_change_is_sent_as_it_came() -> None:
    raw = b'{ "model" : "org/chat",\n "messages": [{"role":"user","content":"1.10e2 \\u00e9"}], "seed": 1.10 }'
    engine = MockEngine()
    async with serving(engine) as gateway:
        headers = {"Content-Type": "application/json"}
        async with gateway.http.post(gateway.url + "/v1/chat/completions", data=raw, headers=headers) as response:
            assert response.status == 200
    assert engine.received[0].raw == raw


async def test_long_prompts_are_sent_with_the_hashes_of_their_blocks() -> None:
    messages = [{"role": "user", "content": "x" * 3000}]
    engine = MockEngine()
    async with serving(engine) as gateway:
        for _ in range(2):
            async with gateway.post(messages=messages) as response:
                await response.read()
    first, second = (received.headers["x-modelfleet-prefix"] for received in engine.received)
    assert first == second
    assert len(first.split(",")) == 2


async def test_the_time_that_is_left_is_passed_on() -> None:
    engine = MockEngine()
    async with (
        serving(engine) as gateway,
        gateway.post(headers={"x-request-timeout": "5"}) as response,
    ):
        assert response.status == 200
    assert 4.5 < float(engine.received[0].headers["x-request-timeout"]) < 5


async def test_a_request_whose_time_is_over_ends_with_504_and_leaves_the_engine() -> None:
    engine = MockEngine(behaviour=Behaviour.HANG)
    async with serving(engine) as gateway:
        async with gateway.post(headers={"x-request-timeout": "0.1"}) as response:
            assert response.status == 504
            assert response.headers["x-should-retry"] == "false"
            assert (await response.json())["error"]["code"] == "request_timeout"
        await until(lambda: len(engine.cancelled_at) == 1)
        assert gateway.pool.book.in_flight("e0") == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_is_followed_by_the_upstream_within_100_ms(stream: bool) -> None:
    behaviour = Behaviour.HANG_AFTER_FIRST if stream else Behaviour.HANG
    engine = MockEngine(behaviour=behaviour)
    async with serving(engine) as gateway:
        request = asyncio.create_task(_read(gateway.post(stream=stream)))
        await until(lambda: engine.running == 1)
        await asyncio.sleep(0.05)
        gone_at = time.monotonic()
        request.cancel()
        await until(lambda: len(engine.cancelled_at) == 1)
        assert engine.cancelled_at[0] - gone_at < 0.1
        await until(lambda: gateway.pool.book.in_flight("e0") == 0)
        assert gateway.gateway.public.in_flight == 0


async def test_a_client_that_goes_while_it_is_held_leaves_the_queue() -> None:
    engine = MockEngine(is_ready=False)
    async with serving(engine, routable=0) as gateway:
        request = asyncio.create_task(_read(gateway.post()))
        await until(lambda: gateway.gateway.dispatcher.waiting == 1)
        request.cancel()
        await until(lambda: gateway.gateway.dispatcher.waiting == 0)
        assert engine.received == []


async def test_a_trace_says_why_this_engine() -> None:
    engine = MockEngine()
    async with serving(engine) as gateway:
        async with gateway.post(headers={"x-modelfleet-trace": "1"}) as response:
            assert response.headers["x-modelfleet-endpoint"] == "e0"
            assert response.headers["x-modelfleet-reason"] == "least-load"
            assert response.headers["x-modelfleet-matched-blocks"] == "0/0"
        async with gateway.post() as response:
            assert not [name for name in response.headers if name.lower().startswith("x-modelfleet")]


async def test_models_are_listed_and_looked_up() -> None:
    engine = MockEngine()
    async with serving(engine) as gateway, gateway.client() as client:
        names = [model.id async for model in await client.models.list()]
        assert names == ["chat.default", "org/chat"]
        assert (await client.models.retrieve("org/chat")).id == "org/chat"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("none")


async def test_an_unknown_model_is_404_with_the_nearest_names() -> None:
    engine = MockEngine()
    async with (
        serving(engine) as gateway,
        gateway.post(model="chat.defualt") as response,
    ):
        assert response.status == 404
        error = orjson.loads(await response.read())["error"]
    assert error["code"] == "model_not_found"
    assert error["param"] == "model"
    assert "chat.default" in error["message"]


async def test_a_foreign_engine_is_used_when_it_is_healthy_and_billed_by_a_chunk_nobody_else_sees() -> None:
    engine = MockEngine(is_foreign=True)
    async with serving(engine) as gateway:
        async with gateway.post(stream=True) as response:
            assert await response.read() == b"".join(stream_events()) + b"data: [DONE]\n\n"
        assert engine.received[0].body["stream_options"] == {"include_usage": True}
        assert gateway.pool.statistics.completion_tokens == 3
        async with gateway.post(stream=True, stream_options={"include_usage": True}) as response:
            assert b'"usage":{"prompt_tokens":7' in await response.read()


async def test_a_body_of_megabytes_reaches_the_engine_whole() -> None:
    raw = orjson.dumps({"model": "org/chat", "messages": [{"role": "user", "content": "y" * 3_000_000}]})
    engine = MockEngine()
    async with serving(engine) as gateway:
        data, headers = io.BytesIO(raw), {"Content-Type": "application/json"}
        async with gateway.http.post(gateway.url + CHAT, data=data, headers=headers) as response:
            assert response.status == 200
    assert engine.received[0].raw == raw


async def _read(context: Any) -> bytes:
    async with context as response:
        body: bytes = await response.read()
        return body
