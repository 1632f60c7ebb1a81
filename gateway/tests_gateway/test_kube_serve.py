"""`modelfleet-gateway` without a file: a process of its own that serves the fleet of a real API server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from modelfleet_gateway.config import GatewayConfig
from modelfleet_gateway.kube_source import KubernetesSource
from modelfleet_gateway.main import EXIT_BAD_CONFIG, main
from modelfleet_kube.connection import Connection

from e2e.cluster.apiserver import ApiServer
from tests_gateway.test_kube_source import Cluster, cluster

__all__ = ["cluster"]
START_SECONDS = 30.0


class GatewayProcess:
    """The command as the chart runs it, on free ports."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def event(self, name: str) -> dict[str, Any]:
        """The next log line of that event."""
        assert self._process.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            while line := await self._process.stdout.readline():
                told: dict[str, Any] = json.loads(line)
                if told["event"] == name:
                    return told
        raise AssertionError(f"it ended without {name}")

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        self._process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(START_SECONDS):
            return await self._process.wait()


@asynccontextmanager
async def gateway_process(kubeconfig: Path) -> AsyncIterator[GatewayProcess]:
    settings = {"HTTP_PORT": "0", "INTERNAL_PORT": "0", "ANONYMOUS": "true", "DRAIN_TIMEOUT_SECONDS": "1"}
    environment = {f"MODELFLEET_GATEWAY_{name}": value for name, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "modelfleet_gateway.main",
        env={**os.environ, **environment, "KUBECONFIG": str(kubeconfig)},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield GatewayProcess(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.apiserver
async def test_the_command_listens_once_it_knows_the_fleet_and_lists_it(
    cluster: Cluster, api_server: ApiServer
) -> None:
    model = await cluster.create_model(model={"source": "pvc://models/m", "name": f"org/{cluster.namespace}"})
    async with gateway_process(api_server.kubeconfig_path) as process:
        synced = await process.event("fleet_synced")
        assert synced["models"] >= 1
        port = (await process.event("listening"))["port"]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/ready") as answer:
                assert answer.status == 200
            async with session.get(f"http://127.0.0.1:{port}/v1/models") as answer:
                listed = {card["id"] for card in (await answer.json())["data"]}
        assert {model.canonical, f"org/{cluster.namespace}"} <= listed
        assert await process.stop() == 0


@pytest.mark.apiserver
async def test_a_gateway_that_waits_for_its_first_fleet_ends_at_once_when_told_to(tmp_path: Path) -> None:
    nowhere = tmp_path / "kubeconfig"
    entries = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
        "users": [{"name": "u", "user": {}}],
    }
    nowhere.write_text(yaml.safe_dump(entries))
    async with gateway_process(nowhere) as process:
        assert (await process.event("watch_failed"))["error"].startswith("no answer ConnectionError")
        assert await process.stop() == 0


def test_without_a_file_and_without_a_cluster_the_command_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/no/such/file")
    assert main([]) == EXIT_BAD_CONFIG
    said = "no --config, and no cluster to watch: no kubeconfig at /no/such/file, and not running in a pod"
    assert capsys.readouterr().err == f"modelfleet-gateway: {said}\n"


async def test_watching_that_ends_by_itself_is_told_and_does_not_keep_the_start_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = KubernetesSource(Connection(server="http://127.0.0.1:9"), config=GatewayConfig())

    async def end() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(source, "_watch", end)
    failures: list[str] = []
    async with source.started(on_failure=lambda: failures.append("told")):
        assert failures == ["told"]
