"""A real API server with the LLMDeployment kind in it, an administrator's client, and a namespace per test."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from modelfleet_api.crd_schema import crd
from modelfleet_kube.client import Client
from modelfleet_kube.connection import load_kubeconfig
from modelfleet_kube.errors import ConflictError, KubeError
from modelfleet_kube.resources import NAMESPACE, ResourceKind, Selection
from modelfleet_operator.caches import LLM_DEPLOYMENT

from e2e.cluster.apiserver import ApiServer
from e2e.cluster.fixtures import api_server
from tests_operator.process import OperatorProcess
from tests_operator.world import World

__all__ = ["api_server"]

CUSTOM_RESOURCE_DEFINITION = ResourceKind(
    group="apiextensions.k8s.io",
    version="v1",
    plural="customresourcedefinitions",
    kind="CustomResourceDefinition",
    is_namespaced=False,
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`pytest operator/tests_operator --update-golden` rewrites golden/*.yaml with what is rendered now."""
    parser.addoption("--update-golden", action="store_true", help="rewrite the operator's golden manifests")


@pytest.fixture
async def client(api_server: ApiServer) -> AsyncIterator[Client]:
    """An administrator's client to a server that serves LLMDeployment."""
    async with Client(load_kubeconfig(api_server.kubeconfig_path)) as client:
        with suppress(ConflictError):
            await client.create(CUSTOM_RESOURCE_DEFINITION, crd())
        async with asyncio.timeout(20):
            while True:
                try:
                    await client.list(Selection(kind=LLM_DEPLOYMENT))
                    break
                except KubeError:
                    await asyncio.sleep(0.05)
        yield client


@pytest.fixture
async def world(client: Client) -> AsyncIterator[World]:
    """A namespace of this test alone. Its LLMDeployments go afterwards: every test's operator sees all namespaces."""
    namespace = f"t-{uuid.uuid4().hex[:10]}"
    await client.create(NAMESPACE, {"metadata": {"name": namespace}})
    world = World(client, namespace)
    yield world
    await world.delete_models()


@pytest.fixture
async def operator(api_server: ApiServer, world: World, tmp_path: Path) -> AsyncIterator[OperatorProcess]:
    """A running operator that leads."""
    async with OperatorProcess(
        api_server.kubeconfig_path, directory=tmp_path, system_namespace=world.namespace
    ) as process:
        yield process
