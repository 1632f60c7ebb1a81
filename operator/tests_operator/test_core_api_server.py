"""What we render against a real API server: it takes every manifest, and what it gives back needs no second write."""

from __future__ import annotations

from typing import Any

import pytest
from modelfleet_api import names
from modelfleet_kube.resources import ObjectRef
from modelfleet_operator.apply import KINDS
from modelfleet_operator.caches import CHILD_KINDS, LLM_DEPLOYMENT
from modelfleet_operator.plan import decide
from modelfleet_operator.state import Manifest, Observed, Resource

from tests_operator import builders
from tests_operator.test_core_golden import FULL, HUB
from tests_operator.world import World

pytestmark = pytest.mark.apiserver

# Everything here comes back otherwise than it was written: left out, as text, or with another suffix.
ODD: dict[str, Any] = {
    "model": {"source": "pvc://models/tiny"},
    "engine": {
        "env": [
            {"name": "EMPTY", "value": ""},
            {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        ]
    },
    "resources": {"requests": {"cpu": "1500m", "memory": "0.5Gi"}, "limits": {"cpu": 2, "memory": "2048Mi"}},
    "placement": {"nodeSelector": {}, "affinity": {}, "tolerations": []},
    "podTemplate": {
        "metadata": {"annotations": {}},
        "spec": {
            "hostNetwork": False,
            "securityContext": {"fsGroup": 0},
            "containers": [
                {
                    "name": "engine",
                    "env": [{"name": "NUMBER", "value": 4}, {"name": "TRUTH", "value": True}],
                    "volumeMounts": [{"name": "cache", "mountPath": "/cache", "readOnly": False}],
                    "livenessProbe": {"initialDelaySeconds": 0},
                },
                {
                    "name": "sidecar",
                    "image": "example/sidecar:1",
                    "env": [{"name": "A", "value": "1"}, {"name": "A", "value": ""}],
                    "resources": {"limits": {"memory": "1024Ki"}},
                    "tty": False,
                    "command": [],
                },
            ],
            "volumes": [{"name": "cache", "emptyDir": {"sizeLimit": "1024Mi"}}, {"name": "plain", "emptyDir": {}}],
        },
    },
}


async def observe(world: World, name: str) -> Observed:
    """The model and its children as the API server holds them."""
    children = [
        {"apiVersion": kind.api_version, "kind": kind.kind, **item}
        for kind in CHILD_KINDS
        for item in await world.children(kind, name)
    ]
    return Observed(resource=Resource.from_manifest(await world.model(name)), children=tuple(children))


async def apply(world: World, manifest: Manifest) -> None:
    ref = ObjectRef(
        kind=KINDS[(manifest["apiVersion"], manifest["kind"])],
        name=manifest["metadata"]["name"],
        namespace=world.namespace,
    )
    await world.client.apply(ref, dict(manifest), field_manager=names.FIELD_MANAGER, force=True)


@pytest.mark.parametrize("spec", [builders.SPEC, FULL, HUB, ODD], ids=["minimal", "full", "hub", "odd"])
async def test_what_the_api_server_makes_of_a_plan_needs_no_second_write(world: World, spec: dict[str, Any]) -> None:
    await world.client.create(
        LLM_DEPLOYMENT,
        {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": "m", "namespace": world.namespace},
            "spec": spec,
        },
    )
    first = decide(await observe(world, "m"), settings=builders.SETTINGS, now=builders.NOW)
    assert len(first.apply_first) + len(first.apply) == 6
    for manifest in (*first.apply_first, *first.apply):
        await apply(world, manifest)

    second = decide(await observe(world, "m"), settings=builders.SETTINGS, now=builders.NOW)

    assert [*second.apply_first, *second.apply, *second.delete] == []
