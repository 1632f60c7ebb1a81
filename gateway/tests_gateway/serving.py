"""A whole gateway in the test's own process, over real sockets, and clients for it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import openai
from modelfleet_gateway.config import GatewayConfig, parse_config
from modelfleet_gateway.fleet import ModelId
from modelfleet_gateway.fleet_source import Snapshot, build_snapshot
from modelfleet_gateway.pool import ModelPool
from modelfleet_gateway.server import Gateway

from tests_gateway.mock_engine import MockEngine, mock_engine

CHAT = "/v1/chat/completions"
MODEL = ModelId(namespace="default", name="chat")
MESSAGES: Any = [{"role": "user", "content": "Tell me a story."}]


def key_hash(key: str) -> str:
    """As the configuration has it."""
    return hashlib.sha256(key.encode()).hexdigest()


def config_of(engines: Sequence[MockEngine | str] = (), **fields: Any) -> GatewayConfig:
    """One model `chat.default` over these engines; fast clocks, everybody may ask. `fields` replace or add."""
    urls = [engine if isinstance(engine, str) else engine.url for engine in engines]
    endpoints = [{"url": url, "uid": f"e{number}"} for number, url in enumerate(urls)]
    content: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "internal": {"listen": "127.0.0.1:0"},
        "models": [{"name": "chat", "servedName": "org/chat", "endpoints": endpoints, **fields.pop("model", {})}],
        "anonymous": {},
        "probeSeconds": 0.05,
        "heartbeatSeconds": 0.05,
        "drain": {"acceptSeconds": 0.05, "timeoutSeconds": 5},
        **fields,
    }
    return parse_config(content, origin="test")


class ChangingSource:
    """A source whose snapshots the test makes."""

    def __init__(self, config: GatewayConfig) -> None:
        self.current = build_snapshot(config)
        self._callbacks: list[Callable[[Snapshot], None]] = []

    def subscribe(self, callback: Callable[[Snapshot], None]) -> None:
        self._callbacks.append(callback)

    def change(self, config: GatewayConfig) -> None:
        self.publish(build_snapshot(config))

    def publish(self, snapshot: Snapshot) -> None:
        self.current = snapshot
        for callback in self._callbacks:
            callback(snapshot)

    async def run(self) -> None:
        await asyncio.Event().wait()


@dataclass
class Served:
    """A running gateway and a plain HTTP client of it."""

    gateway: Gateway
    source: ChangingSource
    http: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.port}"

    @property
    def internal_url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.internal_port}"

    @property
    def pool(self) -> ModelPool:
        return self.gateway.dispatcher.pools[MODEL]

    def client(self, key: str = "none") -> openai.AsyncOpenAI:
        """The real client; it retries nothing, so every error is seen."""
        return openai.AsyncOpenAI(base_url=self.url + "/v1", api_key=key, max_retries=0, timeout=20)

    def post(self, *, stream: bool = False, headers: dict[str, str] | None = None, **fields: Any) -> Any:
        """A chat request, as an async context with the raw response."""
        body = {"model": "chat.default", "messages": MESSAGES, "stream": stream, **fields}
        return self.http.post(self.url + CHAT, json=body, headers=headers)

    async def routable(self, count: int) -> None:
        """Waits until that many engines take requests."""
        await until(lambda: len(self.pool.routable(time.monotonic())) == count)


async def until(condition: Callable[[], bool], *, timeout_seconds: float = 5.0) -> None:
    """Waits for a condition; fails if it does not come."""
    async with asyncio.timeout(timeout_seconds):
        while not condition():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def served(config: GatewayConfig, *, routable: int | None = None) -> AsyncIterator[Served]:
    """Runs a gateway; returns once all engines of the configuration (or `routable`) take requests."""
    source = ChangingSource(config)
    gateway = Gateway(config, source)
    await gateway.start()
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as http:
            running = Served(gateway, source, http)
            if MODEL in gateway.dispatcher.pools:
                await running.routable(len(running.pool.states) if routable is None else routable)
            yield running
    finally:
        await gateway.close()


@asynccontextmanager
async def serving(*engines: MockEngine, routable: int | None = None, **fields: Any) -> AsyncIterator[Served]:
    """Engines and a gateway over them; `fields` as for `config_of`."""
    async with AsyncExitStack() as stack:
        for engine in engines:
            await stack.enter_async_context(mock_engine(engine))
        yield await stack.enter_async_context(served(config_of(engines, **fields), routable=routable))
