"""A kind of its own for tests that need a real 410: its watch cache starts at the version of its creation.

A watch from version 1 is then older than anything the server remembers, where for a built-in kind it may not be.
"""

from __future__ import annotations

import asyncio
from typing import Any

from modelfleet_kube.client import Client
from modelfleet_kube.errors import ConflictError, NotFoundError
from modelfleet_kube.resources import ObjectRef, ResourceKind, Selection

THING = ResourceKind(group="test.modelfleet.dev", version="v1", plural="things", kind="Thing")
CUSTOM_RESOURCE_DEFINITION = ResourceKind(
    group="apiextensions.k8s.io",
    version="v1",
    plural="customresourcedefinitions",
    kind="CustomResourceDefinition",
    is_namespaced=False,
)


async def create_things(client: Client) -> None:
    """Creates the kind, once per server, and waits until it is served."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    definition = {
        "metadata": {"name": f"{THING.plural}.{THING.group}"},
        "spec": {
            "group": THING.group,
            "scope": "Namespaced",
            "names": {"plural": THING.plural, "singular": "thing", "kind": THING.kind},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}],
        },
    }
    try:
        await client.create(CUSTOM_RESOURCE_DEFINITION, definition)
    except ConflictError:
        return
    async with asyncio.timeout(20):
        while not await _is_served(client):
            await asyncio.sleep(0.05)


async def _is_served(client: Client) -> bool:
    try:
        # Only a created object proves that writes are served too.
        await client.create(THING, thing(name="probe", namespace="default"))
        await client.delete(thing_ref(name="probe", namespace="default"))
        await client.list(Selection(kind=THING))
    except NotFoundError:
        return False
    return True


def thing(*, name: str, namespace: str, labels: dict[str, str] | None = None) -> dict[str, Any]:
    """A manifest of the kind."""
    metadata = {"name": name, "namespace": namespace, "labels": labels or {}}
    return {"apiVersion": THING.api_version, "kind": THING.kind, "metadata": metadata}


def thing_ref(*, name: str, namespace: str) -> ObjectRef:
    """Where it is."""
    return ObjectRef(kind=THING, name=name, namespace=namespace)
