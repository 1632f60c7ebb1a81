"""The operator as users run it, a process of its own, and what its metrics say about the requests it made."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import uuid
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

START_SECONDS = 60.0
STOP_SECONDS = 20.0
WRITES = frozenset({"apply", "patch", "create", "update", "delete"})


class OperatorProcess:
    """`async with` starts it and waits until it is ready and leads; leaving sends SIGTERM and waits."""

    def __init__(self, kubeconfig: Path, *, directory: Path, system_namespace: str, name: str = "op-0") -> None:
        self._kubeconfig = kubeconfig
        self._log_path = directory / f"{name}-{uuid.uuid4().hex[:6]}.log"
        self._system_namespace = system_namespace
        self._name = name
        self._process: asyncio.subprocess.Process | None = None
        self._port = 0

    async def __aenter__(self) -> OperatorProcess:
        await self.start()
        await self.wait_ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Starts the process; returns once its probes are served."""
        environment = {
            **os.environ,
            "KUBECONFIG": str(self._kubeconfig),
            "MODELFLEET_ENGINE_IMAGE": "engine:test",
            "MODELFLEET_ENGINE_GPU_IMAGE": "engine:test-gpu",
            "MODELFLEET_HTTP_PORT": "0",
            "MODELFLEET_SYSTEM_NAMESPACE": self._system_namespace,
            "MODELFLEET_POD_NAME": self._name,
        }
        with self._log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "modelfleet_operator.main", env=environment, stderr=log
            )
        async with asyncio.timeout(START_SECONDS):
            while not (ports := [line for line in self.log() if "served on port" in line["message"]]):
                assert self._process.returncode is None, self.log()
                await asyncio.sleep(0.02)
        self._port = int(ports[-1]["message"].rsplit(" ", 1)[1])

    async def wait_ready(self) -> None:
        """Until it is ready and leads."""
        async with asyncio.timeout(START_SECONDS):
            while await self.status("/readyz") != 200 or await self.leads() != 1.0:
                await asyncio.sleep(0.02)

    async def stop(self, *, with_signal: signal.Signals = signal.SIGTERM) -> int:
        """Ends it; returns the exit code. Harmless when it has ended."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(with_signal)
        async with asyncio.timeout(STOP_SECONDS):
            return await self._process.wait()

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process is not None
        return self._process.pid

    def log(self) -> list[dict[str, Any]]:
        """Its log lines so far, each of which has to be JSON."""
        return [json.loads(line) for line in self._log_path.read_text(encoding="utf-8").splitlines()]

    def rss_bytes(self) -> int:
        """Resident memory."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    async def status(self, path: str) -> int:
        """The HTTP status of one of its probes."""
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{self._port}{path}") as answer:
            return answer.status

    async def samples(self, name: str) -> dict[tuple[tuple[str, str], ...], float]:
        """The samples of one metric by their labels."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self._port}/metrics") as answer,
        ):
            text = await answer.text()
        return {
            tuple(sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        }

    async def leads(self) -> float:
        """1.0 where it is the leader."""
        return (await self.samples("modelfleet_operator_leader")).get((), 0.0)

    async def writes(self) -> Counter[str]:
        """How many writes of each resource it has made since its start, its own Lease not counted."""
        counted: Counter[str] = Counter()
        for labels, value in (await self.samples("modelfleet_operator_api_requests_total")).items():
            label = dict(labels)
            if label["verb"] in WRITES and label["resource"] != "leases":
                counted[label["resource"]] += int(value)
        return counted

    async def quiet(self, *, seconds: float = 0.3) -> None:
        """Until no pass is under way or waiting, and none has been made for a while."""
        async with asyncio.timeout(START_SECONDS):
            before = -1.0
            while True:
                made = sum((await self.samples("modelfleet_operator_reconciles_total")).values())
                queue = await self.samples("modelfleet_operator_queue_keys")
                if made == before and queue[(("state", "ready"),)] == queue[(("state", "active"),)] == 0:
                    return
                before = made
                await asyncio.sleep(seconds)
