"""The client's verbs on a real API server."""

from __future__ import annotations

from pathlib import Path

import pytest
from modelfleet_kube import client as client_module
from modelfleet_kube.client import Client
from modelfleet_kube.connection import Connection
from modelfleet_kube.errors import ConflictError, GoneError, UnavailableError
from modelfleet_kube.resources import CONFIG_MAP, NAMESPACE, Selection, resource_version_of
from modelfleet_kube.transport import RequestRecord

from e2e.cluster.apiserver import ApiServer
from tests_kube.builders import config_map, config_map_ref, deployment, deployment_ref
from tests_kube.things import THING, create_things

pytestmark = pytest.mark.apiserver


async def test_an_equal_second_apply_changes_no_resource_version(client: Client, namespace: str) -> None:
    ref = deployment_ref(name="d", namespace=namespace)
    body = deployment(name="d", namespace=namespace)
    first = await client.apply(ref, body, field_manager="test", force=True)
    second = await client.apply(ref, body, field_manager="test", force=True)
    assert resource_version_of(second) == resource_version_of(first) > 0


async def test_a_field_owned_by_another_manager_conflicts_and_force_takes_it(client: Client, namespace: str) -> None:
    ref = config_map_ref(name="c", namespace=namespace)
    theirs = config_map(name="c", namespace=namespace, data={"key": "theirs"})
    ours = config_map(name="c", namespace=namespace, data={"key": "ours"})
    await client.apply(ref, theirs, field_manager="somebody", force=True)
    with pytest.raises(ConflictError, match="somebody"):
        await client.apply(ref, ours, field_manager="test", force=False)
    taken = await client.apply(ref, ours, field_manager="test", force=True)
    assert taken["data"] == {"key": "ours"}


async def test_a_status_patch_reaches_the_subresource_only(client: Client, namespace: str) -> None:
    ref = deployment_ref(name="d", namespace=namespace)
    await client.apply(ref, deployment(name="d", namespace=namespace), field_manager="test", force=True)
    patched = await client.merge_patch(
        ref, {"status": {"replicas": 1, "readyReplicas": 1}, "spec": {"replicas": 7}}, subresource="status"
    )
    assert (patched["status"]["readyReplicas"], patched["spec"]["replicas"]) == (1, 1)


async def test_a_list_in_pages_is_whole_and_its_items_say_what_they_are(
    client: Client, namespace: str, monkeypatch: pytest.MonkeyPatch, requests: list[RequestRecord]
) -> None:
    monkeypatch.setattr(client_module, "LIST_PAGE_ITEMS", 2)
    for index in range(5):
        await client.create(CONFIG_MAP, config_map(name=f"c{index}", namespace=namespace, labels={"a": str(index)}))
    requests.clear()
    listed = await client.list(Selection(kind=CONFIG_MAP, namespace=namespace, label_selector="a"))
    assert [item["metadata"]["name"] for item in listed.items] == ["c0", "c1", "c2", "c3", "c4"]
    assert {(item["apiVersion"], item["kind"]) for item in listed.items} == {("v1", "ConfigMap")}
    assert [record.verb for record in requests] == ["list"] * 3


async def test_selectors_are_evaluated_by_the_server(client: Client, namespace: str) -> None:
    for name, labels in (("with", {"a": "1"}), ("without", {})):
        await client.create(CONFIG_MAP, config_map(name=name, namespace=namespace, labels=labels))
    by_label = await client.list(Selection(kind=CONFIG_MAP, namespace=namespace, label_selector="a"))
    by_field = await client.list(
        Selection(kind=CONFIG_MAP, namespace=namespace, field_selector="metadata.name=without")
    )
    assert [item["metadata"]["name"] for item in by_label.items] == ["with"]
    assert [item["metadata"]["name"] for item in by_field.items] == ["without"]


async def test_a_watch_tells_what_happened_after_its_version_objects_of_any_size(
    client: Client, namespace: str
) -> None:
    selection = Selection(kind=CONFIG_MAP, namespace=namespace)
    start = (await client.list(selection)).resource_version
    large = "x" * 700_000
    await client.create(CONFIG_MAP, config_map(name="c", namespace=namespace, data={"large": large}))
    await client.delete(config_map_ref(name="c", namespace=namespace))
    seen = [
        (event.type, len(event.object["data"]["large"]))
        async for event in client.watch(selection, resource_version=start, timeout_seconds=1)
        if event.type != "BOOKMARK"
    ]
    assert seen == [("ADDED", 700_000), ("DELETED", 700_000)]


async def test_a_watch_from_a_forgotten_version_is_gone(client: Client) -> None:
    await create_things(client)
    with pytest.raises(GoneError):
        async for _ in client.watch(Selection(kind=THING), resource_version="1", timeout_seconds=1):
            pass


async def test_a_bearer_token_is_enough_and_is_never_shown(api_server: ApiServer, namespace: str) -> None:
    ca_pem = api_server.ca_path.read_text(encoding="utf-8")
    connection = Connection(server=api_server.url, ca_pem=ca_pem, token=api_server.token)
    async with Client(connection) as client:
        assert (await client.list(Selection(kind=CONFIG_MAP, namespace=namespace))).items == []
    assert api_server.token not in repr(connection)


async def test_a_token_that_was_replaced_is_read_again_after_a_401(api_server: ApiServer, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("expired", encoding="utf-8")
    ca_pem = api_server.ca_path.read_text(encoding="utf-8")
    async with Client(Connection(server=api_server.url, ca_pem=ca_pem, token_file=token_file)) as client:
        with pytest.raises(UnavailableError) as caught:
            await client.list(Selection(kind=NAMESPACE))
        assert caught.value.code == 401
        token_file.write_text(api_server.token, encoding="utf-8")
        assert (await client.list(Selection(kind=NAMESPACE))).items
