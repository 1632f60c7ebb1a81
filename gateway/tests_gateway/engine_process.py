"""A real engine process (its own HTTP server, scheduler and tokenizer) over a device that needs no weights."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

ENGINE_IMAGE = Path(__file__).parents[2] / "engine-image"
_WRITE_MODEL = (
    "import pathlib, sys; from tests_engine.tiny_model import write_tiny_model as w; w(pathlib.Path(sys.argv[1]))"
)


@dataclass
class EngineProcess:
    """It serves as `served_name` at `url`."""

    process: asyncio.subprocess.Process
    url: str
    served_name: str

    def kill(self) -> None:
        """As a node that dies."""
        self.process.kill()

    def terminate(self) -> None:
        """As a pod that is deleted."""
        self.process.send_signal(signal.SIGTERM)


@asynccontextmanager
async def engine_process(directory: Path, *arguments: str, step_seconds: float = 0.005) -> AsyncIterator[EngineProcess]:
    """Starts one, waits until it is ready, and kills it if the test left it running."""
    environment = {**os.environ, "PYTHONPATH": str(ENGINE_IMAGE), "FAKE_STEP_SECONDS": str(step_seconds)}
    if not any(directory.iterdir()):
        writer = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _WRITE_MODEL, str(directory), cwd=ENGINE_IMAGE, env=environment
        )
        assert await writer.wait() == 0
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests_engine.fake_server", str(directory), "--host", "127.0.0.1", "--port", "0"),
        *arguments,
        cwd=ENGINE_IMAGE,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        port = 0
        async with asyncio.timeout(30):
            while True:
                line = json.loads(await process.stdout.readline())
                port = line.get("port", port)
                if line["event"] == "ready":
                    break
        # Its later lines are read, so that it never waits for us.
        drained = asyncio.create_task(process.stdout.read())
        yield EngineProcess(process, f"http://127.0.0.1:{port}", directory.name)
        if process.returncode is None:
            process.kill()
        await process.wait()
        await drained
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
