"""A real API server, a client that counts its requests, and one namespace per test."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest
from modelfleet_kube.client import Client
from modelfleet_kube.connection import load_kubeconfig
from modelfleet_kube.resources import NAMESPACE, ObjectRef
from modelfleet_kube.transport import RequestRecord

from e2e.cluster.apiserver import ApiServer
from e2e.cluster.fixtures import api_server

__all__ = ["api_server"]


@pytest.fixture
def requests() -> list[RequestRecord]:
    """Every request of `client`, in order."""
    return []


@pytest.fixture
async def client(api_server: ApiServer, requests: list[RequestRecord]) -> AsyncIterator[Client]:
    """An administrator's client."""
    async with Client(load_kubeconfig(api_server.kubeconfig_path), on_request=requests.append) as client:
        yield client


@pytest.fixture
async def namespace(client: Client) -> str:
    """A namespace of this test alone. It stays: the server ends with the session, and no controller empties it."""
    name = f"t-{uuid.uuid4().hex[:10]}"
    await client.create(NAMESPACE, {"metadata": {"name": name}})
    # The admission plugin NamespaceLifecycle sees it through a cache; a get confirms that it is stored.
    await client.get(ObjectRef(kind=NAMESPACE, name=name))
    return name
