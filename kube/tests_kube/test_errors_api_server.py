"""The errors a real API server gives, provoked one by one: the texts of 500s are not documented anywhere."""

from __future__ import annotations

from typing import Any

import pytest
from modelfleet_kube import errors
from modelfleet_kube.client import Client
from modelfleet_kube.connection import Connection
from modelfleet_kube.resources import ObjectRef, ResourceKind
from modelfleet_kube.transport import RequestRecord

from tests_kube.builders import config_map, config_map_ref, deployment, deployment_ref

pytestmark = pytest.mark.apiserver

BAD_CONTAINERS: list[tuple[dict[str, Any], int]] = [
    ({"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}, 500),
    ({"env": [{"name": "A", "value": 1}]}, 500),
    ({"resources": {"requests": {"cpu": "many"}}}, 500),
    ({"bogus": True}, 500),
    ({"image": "", "imagePullPolicy": "Sometimes"}, 422),
]


@pytest.mark.parametrize(("container", "code"), BAD_CONTAINERS)
async def test_a_manifest_that_can_never_work_is_the_users_error_also_when_the_server_says_500(
    client: Client, namespace: str, container: dict[str, Any], code: int
) -> None:
    with pytest.raises(errors.InvalidError) as caught:
        await client.apply(
            deployment_ref(name="d", namespace=namespace),
            deployment(name="d", namespace=namespace, container=container),
            field_manager="test",
            force=True,
        )
    assert caught.value.code == code


async def test_a_changed_selector_is_the_users_error(client: Client, namespace: str) -> None:
    ref = deployment_ref(name="d", namespace=namespace)
    await client.apply(ref, deployment(name="d", namespace=namespace), field_manager="test", force=True)
    other = deployment(name="other", namespace=namespace)
    other["metadata"]["name"] = "d"
    with pytest.raises(errors.InvalidError, match="field is immutable"):
        await client.apply(ref, other, field_manager="test", force=True)


async def test_creating_what_exists_is_a_conflict_and_reading_what_does_not_is_not_found(
    client: Client, namespace: str
) -> None:
    ref = config_map_ref(name="c", namespace=namespace)
    await client.create(ref.kind, config_map(name="c", namespace=namespace))
    with pytest.raises(errors.ConflictError, match="already exists"):
        await client.create(ref.kind, config_map(name="c", namespace=namespace))
    with pytest.raises(errors.NotFoundError):
        await client.get(config_map_ref(name="other", namespace=namespace))


async def test_an_unknown_kind_is_not_found_yet(client: Client) -> None:
    kind = ResourceKind(group="nowhere.dev", version="v1", plural="things", kind="Thing")
    with pytest.raises(errors.NotFoundError):
        await client.get(ObjectRef(kind=kind, name="x", namespace="default"))


async def test_deleting_another_incarnation_is_a_conflict(client: Client, namespace: str) -> None:
    ref = config_map_ref(name="c", namespace=namespace)
    await client.create(ref.kind, config_map(name="c", namespace=namespace))
    with pytest.raises(errors.ConflictError, match="UID in the precondition"):
        await client.delete(ref, uid="00000000-0000-0000-0000-000000000000")
    await client.get(ref)


async def test_a_server_that_is_not_there_is_not_yet_and_is_counted_without_a_code() -> None:
    records: list[RequestRecord] = []
    async with Client(Connection(server="https://127.0.0.1:9"), on_request=records.append) as client:
        with pytest.raises(errors.UnavailableError) as caught:
            await client.get(config_map_ref(name="c", namespace="default"))
    assert caught.value.code == 0
    assert [(record.verb, record.resource, record.code) for record in records] == [("get", "configmaps", 0)]
