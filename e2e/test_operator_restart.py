"""An operator that is killed and comes back finds the world as it should be: it writes nothing, it restarts nothing."""

from __future__ import annotations

import pytest

from e2e import manifests, product, waits
from e2e.conftest import Space

pytestmark = pytest.mark.cluster

KINDS = "llm,deploy,svc,sa,cm,pdb,controllerrevisions,pods"
OPERATOR = "app.kubernetes.io/name=modelfleet"


def versions(space: Space, name: str) -> dict[str, str]:
    """resourceVersion of the model and of every child."""
    found = {
        f"{item['kind']}/{item['metadata']['name']}": item["metadata"]["resourceVersion"]
        for item in space.kubectl.list(KINDS, namespace=space.namespace, selector=f"modelfleet.dev/model={name}")
    }
    model = space.kubectl.get("llm", name, namespace=space.namespace)
    assert model is not None
    return {**found, "LLMDeployment": model["metadata"]["resourceVersion"]}


def test_a_killed_operator_comes_back_and_writes_nothing_and_restarts_nothing(space: Space) -> None:
    name = space.apply(manifests.example())
    waits.settled(space.kubectl, name, namespace=space.namespace, replicas=1)
    before = waits.until(
        lambda: versions(space, name), accept=lambda seen: seen == versions(space, name), what="the world is still"
    )

    system = product.SYSTEM_NAMESPACE
    (old,) = space.kubectl.list("pods", namespace=system, selector=OPERATOR)
    space.kubectl.run(
        "delete", "pod", old["metadata"]["name"], "-n", system, "--grace-period=0", "--force", timeout_seconds=60
    )
    space.fleet.wait_for_operator()
    # A change that the new operator must see proves that it is at work, and so has looked at this model too.
    canary = manifests.example(suspend=True)
    canary["metadata"]["name"] = "canary"
    space.apply(canary)
    waits.condition(space.kubectl, "canary", namespace=space.namespace, expected=("Ready", "False", "Suspended"))

    assert versions(space, name) == before
