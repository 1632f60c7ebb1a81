"""An engine for tests: OpenAI answers on a real socket, what it was sent, and failures on demand.

Set `behaviour` before a request; `MockEngine` speaks protocol v1 (`/load`, the usage comment, draining) unless
`is_foreign`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import orjson
from aiohttp import web
from modelfleet_api.protocol import HEADER_DRAINING, HEADER_USAGE, USAGE_COMMENT_PREFIX, HistogramSnapshot, Load

_NO_VALUES = HistogramSnapshot(upper_bounds=(), counts=(0,), sum=0.0)
_USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "prompt_tokens_details": {"cached_tokens": 4}}
WORDS = ("Once", " upon", " a")


class Behaviour(Enum):
    """What happens to the next requests."""

    ANSWER = auto()
    # The connection breaks: before anything, after the head alone, after the first event, inside the second.
    DIE_AT_ONCE = auto()
    DIE_AFTER_HEAD = auto()
    DIE_AFTER_FIRST = auto()
    DIE_INSIDE_EVENT = auto()
    # The stream ends in good order of HTTP, but without [DONE].
    STOP_SHORT = auto()
    # Nothing comes, before the head or after the first event.
    HANG = auto()
    HANG_AFTER_FIRST = auto()
    DRAINING = auto()
    BUSY = auto()
    BROKEN = auto()
    ERROR_EVENT = auto()


class _Died(asyncio.CancelledError):
    """Out of the handler in a way that aiohttp does not log."""


@dataclass(frozen=True)
class Received:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return orjson.loads(self.raw)


@dataclass
class MockEngine:
    """One engine; `url` is valid while it runs."""

    url: str = ""
    behaviour: Behaviour = Behaviour.ANSWER
    is_ready: bool = True
    is_draining: bool = False
    is_foreign: bool = False
    max_num_seqs: int = 8
    token_seconds: float = 0.0
    # If set, an answer waits for it before its first byte.
    gate: asyncio.Event | None = None
    received: list[Received] = field(default_factory=list)
    # When the connection of an unfinished answer was lost, on the monotonic clock.
    cancelled_at: list[float] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    on_request: Callable[[Received], Behaviour] | None = None

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/chat/completions` and `/v1/completions`."""
        raw = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        received = Received(path=request.path, headers=headers, raw=raw)
        self.received.append(received)
        behaviour = self.behaviour if self.on_request is None else self.on_request(received)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if self.gate is not None:
                await self.gate.wait()
            return await self._respond(request, received, behaviour)
        except _Died:
            raise
        except (asyncio.CancelledError, ConnectionResetError):
            self.cancelled_at.append(time.monotonic())
            raise
        finally:
            self.running -= 1

    async def _respond(self, request: web.Request, received: Received, behaviour: Behaviour) -> web.StreamResponse:
        if behaviour is Behaviour.DIE_AT_ONCE:
            _die(request)
        if behaviour is Behaviour.HANG:
            await asyncio.Event().wait()
        if behaviour is Behaviour.DRAINING:
            return _error(503, "engine_draining", {HEADER_DRAINING: "1", "Retry-After": "1"})
        if behaviour is Behaviour.BUSY:
            return _error(429, "queue_full", {"Retry-After": "7"})
        if behaviour is Behaviour.BROKEN:
            return _error(500, "internal_error", {})
        if not received.body.get("stream"):
            choices = [
                {"index": 0, "message": {"role": "assistant", "content": "".join(WORDS)}, "finish_reason": "stop"}
            ]
            body = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices}
            return web.json_response({**body, "usage": _USAGE}, headers={"x-engine": "kept", "x-modelfleet-own": "no"})
        return await self._stream(request, received, behaviour)

    async def _stream(self, request: web.Request, received: Received, behaviour: Behaviour) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        if behaviour is Behaviour.DIE_AFTER_HEAD:
            # The head waits for the first byte of the body in aiohttp; it must go alone here.
            assert response._payload_writer is not None
            response._payload_writer.send_headers()
            await asyncio.sleep(0.01)
            _die(request)
        for position, event in enumerate(stream_events()):
            if position == 1:
                await self._mishap(request, response, event, behaviour)
                if behaviour in (Behaviour.STOP_SHORT, Behaviour.ERROR_EVENT):
                    await response.write_eof()
                    return response
            await response.write(event)
            if self.token_seconds:
                await asyncio.sleep(self.token_seconds)
        end = b"data: [DONE]\n\n"
        if (received.body.get("stream_options") or {}).get("include_usage"):
            end = (
                b"data: "
                + orjson.dumps({"object": "chat.completion.chunk", "choices": [], "usage": _USAGE})
                + b"\n\n"
                + end
            )
        if received.headers.get(HEADER_USAGE) == "1" and not self.is_foreign:
            end += USAGE_COMMENT_PREFIX.encode() + orjson.dumps(_USAGE) + b"\n\n"
        await response.write(end)
        await response.write_eof()
        return response

    async def _mishap(
        self, request: web.Request, response: web.StreamResponse, event: bytes, behaviour: Behaviour
    ) -> None:
        if behaviour is Behaviour.DIE_INSIDE_EVENT:
            await response.write(event[: len(event) // 2])
        if behaviour in (Behaviour.DIE_AFTER_FIRST, Behaviour.DIE_INSIDE_EVENT):
            await asyncio.sleep(0.02)
            _die(request)
        if behaviour is Behaviour.HANG_AFTER_FIRST:
            await asyncio.Event().wait()
        if behaviour is Behaviour.ERROR_EVENT:
            await response.write(
                b'data: {"error":{"message":"cut","type":"server_error","param":null,"code":"cut"}}\n\n'
            )

    async def load(self, _request: web.Request) -> web.Response:
        """`GET /load`."""
        if self.is_foreign:
            raise web.HTTPNotFound
        load = Load(
            model="m",
            phase="ready",
            ready=self.is_ready and not self.is_draining,
            draining=self.is_draining,
            running=self.running,
            max_num_seqs=self.max_num_seqs,
            time_to_first_token_seconds=_NO_VALUES,
            inter_token_latency_seconds=_NO_VALUES,
            output_tokens=_NO_VALUES,
        )
        return web.Response(body=load.model_dump_json(by_alias=True), content_type="application/json")

    async def health(self, _request: web.Request) -> web.Response:
        """`GET /health`."""
        return web.Response(status=200 if self.is_ready else 503)


def stream_events() -> list[bytes]:
    """The data events of a stream, as the engine writes them, without [DONE]."""
    chunks = [
        {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m",
         "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}
        for word in WORDS
    ]  # fmt: skip
    return [b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in chunks]


def _die(request: web.Request) -> None:
    """As a killed process: the connection is reset."""
    assert request.transport is not None
    request.transport.abort()
    # aiohttp's own way out of a handler whose client is gone: nothing is logged.
    raise asyncio.CancelledError


def _error(status: int, code: str, headers: dict[str, str]) -> web.Response:
    body = {"error": {"message": "from the engine", "type": "t", "param": None, "code": code}}
    return web.json_response(body, status=status, headers=headers)


@asynccontextmanager
async def mock_engine(engine: MockEngine | None = None, *, port: int = 0) -> AsyncIterator[MockEngine]:
    """Runs one on a free port, or on the one it had before."""
    engine = engine or MockEngine()
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.add_routes(
        [
            web.post("/v1/chat/completions", engine.chat),
            web.post("/v1/completions", engine.chat),
            web.get("/load", engine.load),
            web.get("/health", engine.health),
        ]
    )
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
    engine.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield engine
    finally:
        await runner.cleanup()
