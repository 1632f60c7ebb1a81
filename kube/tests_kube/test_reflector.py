"""Reflectors against a real API server, over a network that can be cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import pytest
from modelfleet_kube.cache import Change, by_label
from modelfleet_kube.client import Client
from modelfleet_kube.connection import load_kubeconfig
from modelfleet_kube.errors import KubeError
from modelfleet_kube.reflector import Reflector, ReflectorHooks
from modelfleet_kube.resources import ObjectKey, Selection

from e2e.cluster.apiserver import ApiServer
from tests_kube.proxy import CuttableProxy
from tests_kube.things import THING, create_things, thing, thing_ref

pytestmark = pytest.mark.apiserver


class Reflected:
    """A running reflector behind a proxy, and what it told."""

    def __init__(self, client: Client, proxy: CuttableProxy, namespace: str) -> None:
        self.proxy = proxy
        self.told: list[tuple[str, str]] = []
        self.errors: list[KubeError] = []
        hooks = ReflectorHooks(on_change=self._on_change, on_error=self._on_error, random_unit=lambda: 0.0)
        selection = Selection(kind=THING, namespace=namespace, label_selector="model")
        self.reflector = Reflector(client, selection, hooks=hooks, index_by=by_label("model"))

    def _on_change(self, change: Change) -> None:
        self.told.append((change.type.value, change.key.name))

    def _on_error(self, _: Selection, error: KubeError) -> None:
        self.errors.append(error)


@pytest.fixture
async def reflected(client: Client, namespace: str, api_server: ApiServer) -> AsyncIterator[Reflected]:
    await create_things(client)
    async with (
        CuttableProxy(load_kubeconfig(api_server.kubeconfig_path)) as proxy,
        Client(proxy.connection) as through_proxy,
    ):
        reflected = Reflected(through_proxy, proxy, namespace)
        task = asyncio.create_task(reflected.reflector.run())
        await reflected.reflector.synced.wait()
        yield reflected
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def make(client: Client, namespace: str, *names: str) -> None:
    for name in names:
        await client.create(THING, thing(name=name, namespace=namespace, labels={"model": "m"}))


async def test_it_tells_creations_and_deletions_and_indexes_by_label(
    client: Client, namespace: str, reflected: Reflected
) -> None:
    await make(client, namespace, "a", "b")
    await client.create(THING, thing(name="unlabelled", namespace=namespace))
    await until(lambda: len(reflected.told) == 2)
    items = reflected.reflector.cache.indexed(ObjectKey(namespace, "m"))
    assert [item["metadata"]["name"] for item in items] == ["a", "b"]
    assert all("managedFields" not in item["metadata"] for item in items)
    await client.delete(thing_ref(name="a", namespace=namespace))
    await until(lambda: len(reflected.told) == 3)
    assert reflected.told == [("ADDED", "a"), ("ADDED", "b"), ("DELETED", "a")]


async def test_a_broken_watch_goes_on_where_it_was_and_tells_nothing_twice(
    client: Client, namespace: str, reflected: Reflected
) -> None:
    await make(client, namespace, "a")
    await until(lambda: len(reflected.told) == 1)
    reflected.proxy.cut()
    await make(client, namespace, "b")
    await client.delete(thing_ref(name="a", namespace=namespace))
    await until(lambda: len(reflected.errors) >= 2)
    reflected.proxy.restore()
    await until(lambda: len(reflected.told) == 3)
    assert reflected.told == [("ADDED", "a"), ("ADDED", "b"), ("DELETED", "a")]


async def test_a_410_lists_anew_and_tells_the_deletion_that_no_watch_told(
    client: Client, namespace: str, reflected: Reflected
) -> None:
    await make(client, namespace, "a", "b")
    await until(lambda: len(reflected.told) == 2)
    reflected.proxy.cut()
    await client.delete(thing_ref(name="a", namespace=namespace))
    reflected.proxy.next_watch_is_forgotten = True
    reflected.proxy.restore()
    await until(lambda: len(reflected.told) == 3)
    assert reflected.told[2] == ("DELETED", "a")
    assert "1" in reflected.proxy.watches
    assert len(reflected.reflector.cache) == 1
    await make(client, namespace, "c")
    await until(lambda: reflected.told[-1] == ("ADDED", "c"))


async def test_a_label_taken_away_is_a_deletion(client: Client, namespace: str, reflected: Reflected) -> None:
    await make(client, namespace, "a")
    await until(lambda: len(reflected.told) == 1)
    await client.merge_patch(thing_ref(name="a", namespace=namespace), {"metadata": {"labels": {"model": None}}})
    await until(lambda: len(reflected.told) == 2)
    assert reflected.told[1] == ("DELETED", "a")
    assert reflected.reflector.cache.indexed(ObjectKey(namespace, "m")) == []


async def test_our_own_write_is_in_the_cache_at_once_and_not_told(
    client: Client, namespace: str, reflected: Reflected
) -> None:
    reflected.proxy.cut()
    written = await client.create(THING, thing(name="a", namespace=namespace, labels={"model": "m"}))
    reflected.reflector.put(written)
    assert reflected.reflector.cache.get(ObjectKey(namespace, "a")) is written
    reflected.proxy.restore()
    await make(client, namespace, "b")
    await until(lambda: len(reflected.told) == 1)
    assert reflected.told == [("ADDED", "b")]
