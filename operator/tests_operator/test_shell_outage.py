"""The operator over a network that fails: it stays up, misses nothing, and catches up by itself."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import yaml
from modelfleet_kube.connection import load_kubeconfig
from modelfleet_kube.resources import DEPLOYMENT, SERVICE
from modelfleet_operator.caches import LLM_DEPLOYMENT
from tests_kube.proxy import CuttableProxy

from e2e.cluster.apiserver import ApiServer
from tests_operator.process import OperatorProcess
from tests_operator.world import World, until

pytestmark = pytest.mark.apiserver


def kubeconfig_for(server: str, *, directory: Path) -> Path:
    document = {
        "current-context": "proxy",
        "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "nobody"}}],
        "clusters": [{"name": "proxy", "cluster": {"server": server}}],
        "users": [{"name": "nobody", "user": {}}],
    }
    path = directory / "kubeconfig"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


async def test_an_outage_of_the_api_server_ends_nothing_and_changes_meanwhile_are_caught_up(
    api_server: ApiServer, world: World, tmp_path: Path
) -> None:
    async with CuttableProxy(load_kubeconfig(api_server.kubeconfig_path)) as proxy:
        kubeconfig = kubeconfig_for(proxy.connection.server, directory=tmp_path)
        async with OperatorProcess(kubeconfig, directory=tmp_path, system_namespace=world.namespace) as operator:
            await world.apply_model("stays")
            await world.apply_model("goes")
            await world.wait_children("stays")
            await world.wait_children("goes")
            await operator.quiet()
            pid = operator.pid
            proxy.cut()
            await world.apply_model("stays", replicas=2)
            await world.apply_model("comes")
            await world.client.delete(world.ref(LLM_DEPLOYMENT, "goes"))
            await world.client.delete(world.ref(SERVICE, "stays"))
            await asyncio.sleep(1.5)
            assert await operator.status("/healthz") == 200
            proxy.restore()

            async def has_caught_up() -> bool:
                deployments = await world.children(DEPLOYMENT, "stays")
                replicas = [item["spec"]["replicas"] for item in deployments]
                return replicas == [2] and bool(await world.children(SERVICE, "stays"))

            await until(has_caught_up)
            await world.wait_children("comes")
            assert operator.pid == pid
            assert await operator.leads() == 1.0
