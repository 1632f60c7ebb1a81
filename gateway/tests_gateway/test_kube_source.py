"""The Kubernetes source against a real API server: what it lists, what it hears, and what it does in an outage."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from modelfleet_api import crd_kinds
from modelfleet_api.crd_schema import crd
from modelfleet_gateway.config import GatewayConfig, LimitsConfig
from modelfleet_gateway.errors import ConfigError
from modelfleet_gateway.fleet import Endpoint, Fleet, ModelId, Route, RouteTarget
from modelfleet_gateway.fleet_source import Snapshot
from modelfleet_gateway.kube_source import LLM_DEPLOYMENT, MODEL_ROUTE, KubernetesSource, kubernetes_source
from modelfleet_kube.client import Client
from modelfleet_kube.connection import Connection, load_kubeconfig
from modelfleet_kube.errors import ConflictError, KubeError, NotFoundError
from modelfleet_kube.resources import NAMESPACE, POD, ObjectRef, ResourceKind, Selection
from tests_kube.proxy import CuttableProxy

from e2e.cluster.apiserver import ApiServer
from tests_gateway.kube_objects import (
    container_status,
    engine_container,
    engine_pod,
    llm_deployment,
    model_route,
    pod_labels,
)

CUSTOM_RESOURCE_DEFINITION = ResourceKind(
    group="apiextensions.k8s.io",
    version="v1",
    plural="customresourcedefinitions",
    kind="CustomResourceDefinition",
    is_namespaced=False,
)


class Cluster:
    """One namespace in which a test plays user, scheduler and kubelet."""

    def __init__(self, client: Client, namespace: str) -> None:
        self.client = client
        self.namespace = namespace

    async def create_model(self, name: str = "m", **spec: Any) -> ModelId:
        manifest = llm_deployment(name, namespace=self.namespace, **spec)
        await self.client.create(LLM_DEPLOYMENT, manifest)
        return ModelId(namespace=self.namespace, name=name)

    async def create_pod(self, name: str, *, model: str = "m", address: str) -> str:
        metadata = {"name": name, "namespace": self.namespace, "labels": pod_labels(model)}
        created = await self.client.create(POD, {"metadata": metadata, "spec": {"containers": [engine_container()]}})
        await self.set_pod_status(name, **{**engine_pod()["status"], "podIP": address, "podIPs": [{"ip": address}]})
        return str(created["metadata"]["uid"])

    async def set_pod_status(self, name: str, **status: Any) -> None:
        await self.client.strategic_patch(self.ref(POD, name), {"status": status}, subresource="status")

    def ref(self, kind: ResourceKind, name: str) -> ObjectRef:
        return ObjectRef(kind=kind, name=name, namespace=self.namespace)

    def seen(self, fleet: Fleet) -> dict[str, Endpoint]:
        """The endpoints of this namespace: other tests leave theirs behind."""
        return {uid: each for uid, each in fleet.endpoints.items() if each.model.namespace == self.namespace}


@pytest.fixture
async def cluster(api_server: ApiServer) -> AsyncIterator[Cluster]:
    async with Client(load_kubeconfig(api_server.kubeconfig_path)) as client:
        with suppress(ConflictError):
            await client.create(CUSTOM_RESOURCE_DEFINITION, crd())
        await until_async(lambda: client.list(Selection(kind=LLM_DEPLOYMENT)))
        namespace = f"t-{uuid.uuid4().hex[:10]}"
        await client.create(NAMESPACE, {"metadata": {"name": namespace}})
        await client.get(ObjectRef(kind=NAMESPACE, name=namespace))
        yield Cluster(client, namespace)
        for item in (await client.list(Selection(kind=LLM_DEPLOYMENT, namespace=namespace))).items:
            await client.delete(ObjectRef(kind=LLM_DEPLOYMENT, name=item["metadata"]["name"], namespace=namespace))


async def until_async(read: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                await read()
                return
            except KubeError:
                await asyncio.sleep(0.05)


async def gone(client: Client, kind: ResourceKind) -> None:
    """Raises NotFoundError as soon as the kind is not served any more."""
    async with asyncio.timeout(20):
        while True:
            await client.list(Selection(kind=kind))
            await asyncio.sleep(0.05)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(source: KubernetesSource) -> AsyncIterator[list[Snapshot]]:
    """The source at work and synced; yields the snapshots it tells."""
    told: list[Snapshot] = []
    source.subscribe(told.append)
    task = asyncio.create_task(source.run())
    try:
        async with asyncio.timeout(10):
            await source.wait_synced()
        yield told
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def source_at(api_server: ApiServer) -> KubernetesSource:
    return KubernetesSource(load_kubeconfig(api_server.kubeconfig_path), config=GatewayConfig())


@pytest.mark.apiserver
async def test_the_first_snapshot_told_is_the_whole_fleet(cluster: Cluster, api_server: ApiServer) -> None:
    model = await cluster.create_model(model={"source": "pvc://models/m", "name": "org/Chat"})
    uid = await cluster.create_pod("m-abc-0", address="10.0.0.7")
    await cluster.create_pod("orphan", model="no-such-model", address="10.0.0.8")
    source = source_at(api_server)
    assert not source.is_synced
    assert source.current.fleet == Fleet()

    async with running(source) as told:
        assert source.is_synced
        assert told == [source.current]
        fleet = told[0].fleet

    assert fleet.models[model].served_name == "org/Chat"
    assert fleet.models[model].created_at > 1_700_000_000
    assert cluster.seen(fleet) == {
        uid: Endpoint(uid=uid, model=model, base_url="http://10.0.0.7:8000", revision="abc", restarts=0)
    }


@pytest.mark.apiserver
async def test_pods_that_come_restart_drain_and_go_are_told_in_whole_snapshots(
    cluster: Cluster, api_server: ApiServer
) -> None:
    model = await cluster.create_model()
    source = source_at(api_server)
    async with running(source):
        uid = await cluster.create_pod("m-abc-0", address="10.0.0.7")
        await until(lambda: uid in source.current.fleet.endpoints)
        before = source.current.fleet

        await cluster.set_pod_status("m-abc-0", containerStatuses=[container_status("engine", restarts=1)])
        await until(lambda: source.current.fleet.endpoints[uid].restarts == 1)
        mark = {"metadata": {"annotations": {"modelfleet.dev/draining": "scale-in"}}}
        await cluster.client.merge_patch(cluster.ref(POD, "m-abc-0"), mark)
        await until(lambda: source.current.fleet.endpoints[uid].is_draining)
        await cluster.client.merge_patch(cluster.ref(POD, "m-abc-0"), {"metadata": {"annotations": None}})
        await until(lambda: not source.current.fleet.endpoints[uid].is_draining)

        assert before.endpoints[uid].restarts == 0
        await cluster.client.delete(cluster.ref(LLM_DEPLOYMENT, "m"))
        await until(lambda: model not in source.current.fleet.models)
        assert cluster.seen(source.current.fleet) == {}


@pytest.mark.apiserver
async def test_what_changes_nothing_of_the_fleet_is_not_told(cluster: Cluster, api_server: ApiServer) -> None:
    model = await cluster.create_model()
    uid = await cluster.create_pod("m-abc-0", address="10.0.0.7")
    source = source_at(api_server)
    async with running(source) as told:
        await cluster.client.merge_patch(cluster.ref(LLM_DEPLOYMENT, "m"), {"spec": {"replicas": 7}})
        await cluster.set_pod_status("m-abc-0", conditions=[{"type": "Ready", "status": "True"}])
        await cluster.client.merge_patch(cluster.ref(LLM_DEPLOYMENT, "m"), {"spec": {"suspend": True}})
        await until(lambda: source.current.fleet.models[model].is_suspended)

        assert [snapshot.fleet.models[model].is_suspended for snapshot in told] == [False, True]
        assert uid in told[-1].fleet.endpoints


@pytest.mark.apiserver
async def test_while_the_api_server_is_away_the_last_fleet_stays_and_what_was_missed_comes_after(
    cluster: Cluster, api_server: ApiServer
) -> None:
    await cluster.create_model()
    gone = await cluster.create_pod("m-abc-0", address="10.0.0.7")
    async with CuttableProxy(load_kubeconfig(api_server.kubeconfig_path)) as proxy:
        source = KubernetesSource(proxy.connection, config=GatewayConfig())
        async with running(source) as told:
            proxy.cut()
            await cluster.client.delete(cluster.ref(POD, "m-abc-0"))
            new = await cluster.create_pod("m-abc-1", address="10.0.0.8")
            await asyncio.sleep(0.3)
            assert list(cluster.seen(source.current.fleet)) == [gone]
            assert len(told) == 1

            proxy.restore()
            await until(lambda: list(cluster.seen(source.current.fleet)) == [new])


@pytest.mark.apiserver
async def test_a_gateway_that_starts_during_an_outage_has_no_fleet_until_it_ends(
    cluster: Cluster, api_server: ApiServer
) -> None:
    model = await cluster.create_model()
    async with CuttableProxy(load_kubeconfig(api_server.kubeconfig_path)) as proxy:
        proxy.cut()
        source = KubernetesSource(proxy.connection, config=GatewayConfig())
        task = asyncio.create_task(source.run())
        await asyncio.sleep(0.3)
        assert not source.is_synced

        proxy.restore()
        async with asyncio.timeout(10):
            await source.wait_synced()
        assert model in source.current.fleet.models
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.mark.apiserver
async def test_a_cluster_without_the_kind_modelroute_is_watched_and_its_routes_come_with_the_kind(
    cluster: Cluster, api_server: ApiServer
) -> None:
    definition = ObjectRef(kind=CUSTOM_RESOURCE_DEFINITION, name=crd_kinds.MODEL_ROUTE.definition_name)
    with suppress(NotFoundError):
        await cluster.client.delete(definition)
        await gone(cluster.client, MODEL_ROUTE)
    model = await cluster.create_model()
    source = source_at(api_server)
    async with running(source):
        assert model in source.current.fleet.models
        assert list(source.current.fleet.routes) == []

        await cluster.client.create(CUSTOM_RESOURCE_DEFINITION, crd(crd_kinds.MODEL_ROUTE))
        route = model_route(namespace=cluster.namespace, aliases=["chat"], targets=[{"model": "m"}])
        await until_async(lambda: cluster.client.create(MODEL_ROUTE, route))
        await until(lambda: len(source.current.fleet.routes) > 0)

        expected = Route(aliases=("chat",), targets=(RouteTarget(model=model, weight=1),))
        assert list(source.current.fleet.routes) == [expected]
        await cluster.client.delete(cluster.ref(MODEL_ROUTE, "r"))
        await until(lambda: len(source.current.fleet.routes) == 0)


async def test_tenants_and_anonymous_access_are_the_configurations() -> None:
    config = GatewayConfig(anonymous=LimitsConfig(priority=3))
    source = KubernetesSource(Connection(server="https://127.0.0.1:9"), config=config)
    assert source.current.anonymous is not None
    assert source.current.anonymous.limits.priority == 3
    assert source.current.tenants == ()


async def test_outside_a_cluster_and_without_a_kubeconfig_the_start_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/no/such/file")
    with pytest.raises(ConfigError, match=r"no --config, and no cluster to watch: no kubeconfig at /no/such/file"):
        kubernetes_source(GatewayConfig())
