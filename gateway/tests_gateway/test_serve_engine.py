"""The gateway over real engine processes, with the real OpenAI client: the protocol's two ends meet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai

from tests_gateway.engine_process import EngineProcess, engine_process
from tests_gateway.serving import Served, config_of, key_hash, served, until

_MESSAGES: Any = [{"role": "user", "content": "a"}]
_LONG: Any = [{"role": "user", "content": "b" * 1500}]


def _config(*engines: EngineProcess, **fields: Any) -> Any:
    return config_of([engine.url for engine in engines], model={"servedName": engines[0].served_name}, **fields)


@asynccontextmanager
async def _two_engines(directory: Path, *arguments: str) -> AsyncIterator[tuple[EngineProcess, Served]]:
    """A gateway over two engines, and the one that is to end."""
    async with (
        engine_process(directory, *arguments) as one,
        engine_process(directory) as other,
        served(_config(one, other)) as gateway,
    ):
        yield one, gateway


async def test_streams_answers_prefixes_and_bills_agree_with_the_engine(tmp_path: Path) -> None:
    tenants = [{"name": "a", "keyHashes": [key_hash("k")], "salt": "pepper"}]
    async with engine_process(tmp_path) as engine, served(_config(engine, tenants=tenants, anonymous=None)) as gateway:
        async with gateway.client("k") as client:
            answer = await client.chat.completions.create(model="chat.default", messages=_LONG, max_tokens=4)
            stream = await client.chat.completions.create(
                model=engine.served_name, messages=_LONG, max_tokens=4, stream=True
            )
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == answer.choices[0].message.content == "abcd"
        assert answer.usage is not None
        await until(lambda: gateway.gateway.public.in_flight == 0)
        quota = gateway.gateway.tenants.identify("Bearer k").quota
        assert sum(quota.checkpoint().tokens.values()) == 2 * answer.usage.total_tokens
        # The second prompt was cached, and the engine's own events said so.
        assert gateway.pool.statistics.cached_tokens > 1000
        await until(lambda: gateway.pool.index.blocks_of("e0") == 1)


async def test_an_engine_that_is_killed_under_load_costs_only_streams_that_had_begun(tmp_path: Path) -> None:
    async with _two_engines(tmp_path) as (one, gateway), gateway.client() as client:
        streams = [asyncio.create_task(_outcome(client)) for _ in range(12)]
        await until(lambda: gateway.pool.statistics.first_token_seconds.sum > 0)
        one.kill()
        outcomes = await asyncio.gather(*streams)
        assert outcomes.count("cut") == gateway.pool.statistics.cut_streams
        assert outcomes.count("whole") >= 6
        assert await _outcome(client) == "whole"


async def test_an_engine_that_ends_in_order_costs_nothing(tmp_path: Path) -> None:
    drain = ("--drain-timeout-seconds", "20", "--accept-after-sigterm-seconds", "0")
    async with _two_engines(tmp_path, *drain) as (one, gateway), gateway.client() as client:
        streams = [asyncio.create_task(_outcome(client)) for _ in range(12)]
        await until(lambda: gateway.pool.statistics.first_token_seconds.sum > 0)
        one.terminate()
        later = [asyncio.create_task(_outcome(client)) for _ in range(12)]
        assert await asyncio.gather(*streams, *later) == ["whole"] * 24
        assert await one.process.wait() == 0


async def _outcome(client: openai.AsyncOpenAI) -> str:
    stream = await client.chat.completions.create(
        model="chat.default",
        messages=_MESSAGES,
        max_tokens=40,
        stream=True,
    )
    text = ""
    try:
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
    except openai.APIError:
        return "cut"
    assert len(text) == 40, text
    return "whole"
