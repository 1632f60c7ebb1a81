"""The gateway's own end: nothing that was accepted is dropped, and whoever cannot be served is told."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests_gateway.mock_engine import Behaviour, MockEngine, mock_engine, stream_events
from tests_gateway.serving import CHAT, MESSAGES, serving, until

_WHOLE_STREAM = b"".join(stream_events()) + b"data: [DONE]\n\n"


async def _body(context: Any) -> tuple[int, bytes]:
    async with context as response:
        return response.status, await response.read()


async def test_streams_that_run_are_finished_and_new_requests_are_told_to_go_elsewhere() -> None:
    engine = MockEngine(token_seconds=0.1)
    async with serving(engine) as gateway:
        stream = asyncio.create_task(_body(gateway.post(stream=True)))
        await until(lambda: engine.running == 1)
        drain = asyncio.create_task(gateway.gateway.drain())
        await asyncio.sleep(0.01)
        async with gateway.http.get(gateway.url + "/ready") as response:
            assert response.status == 503
        async with gateway.http.get(gateway.url + "/health") as response:
            assert response.status == 200
        # Load balancers have not noticed yet: still served, but not on a connection that stays.
        accepted = asyncio.create_task(_body(gateway.post(stream=True)))
        await until(lambda: engine.running == 2)
        await until(lambda: gateway.gateway.public.ending.is_refusing)
        async with gateway.post() as response:
            assert response.status == 503
            assert response.headers["Retry-After"] == "1"
            assert response.headers["Connection"] == "close"
            assert (await response.json())["error"]["code"] == "gateway_draining"
        assert await stream == (200, _WHOLE_STREAM)
        assert await accepted == (200, _WHOLE_STREAM)
        assert await drain is True


@pytest.mark.parametrize("stream", [False, True])
async def test_held_requests_end_with_a_retryable_error(stream: bool) -> None:
    async with serving(heartbeatSeconds=30) as gateway:
        held = asyncio.create_task(_body(gateway.post(stream=stream)))
        await until(lambda: gateway.gateway.dispatcher.waiting == 1)
        assert await gateway.gateway.drain() is True
        status, body = await held
        assert status == 503
        assert b'"code":"gateway_draining"' in body


async def test_requests_that_wait_for_room_still_get_it() -> None:
    engine = MockEngine(max_num_seqs=1, token_seconds=0.05)
    async with serving(engine, heartbeatSeconds=30) as gateway:
        streams = [asyncio.create_task(_body(gateway.post(stream=True))) for _ in range(3)]
        await until(lambda: gateway.gateway.dispatcher.waiting == 2)
        assert await gateway.gateway.drain() is True
        assert await asyncio.gather(*streams) == [(200, _WHOLE_STREAM)] * 3


async def test_what_does_not_end_in_time_is_told_so() -> None:
    engine = MockEngine(behaviour=Behaviour.HANG_AFTER_FIRST)
    async with serving(engine, drain={"acceptSeconds": 0, "timeoutSeconds": 0.2}) as gateway:
        stream = asyncio.create_task(_body(gateway.post(stream=True)))
        await until(lambda: gateway.pool.statistics.first_token_seconds.sum > 0)
        assert await gateway.gateway.drain() is False
        _, body = await stream
        assert body.startswith(stream_events()[0])
        assert b'"code":"gateway_draining"' in body


async def test_the_command_serves_reads_its_file_again_and_ends_by_sigterm(tmp_path: Path) -> None:
    engine = MockEngine()
    config = tmp_path / "gateway.yaml"
    content: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "internal": {"listen": "127.0.0.1:0"},
        "anonymous": {},
        "drain": {"acceptSeconds": 0},
        "models": [],
    }
    config.write_text(yaml.safe_dump(content))
    async with mock_engine(engine):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "modelfleet_gateway.main", "--config", str(config)),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        try:
            assert process.stdout is not None
            port = int((await process.stdout.readline()).split(b'"port":')[1].split(b",")[0])
            url = f"http://127.0.0.1:{port}{CHAT}"
            content["models"] = [{"name": "chat", "endpoints": [{"url": engine.url}]}]
            config.write_text(yaml.safe_dump(content))
            process.send_signal(signal.SIGHUP)
            await process.stdout.readline()
            body = {"model": "chat", "messages": MESSAGES}
            async with aiohttp.ClientSession() as http, http.post(url, json=body) as response:
                assert response.status == 200
            process.send_signal(signal.SIGTERM)
            rest = await process.stdout.read()
            assert await process.wait() == 0
            assert b'"event":"drained","clean":true' in rest
            assert b"Tell me a story" not in rest
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
