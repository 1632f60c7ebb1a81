"""The chart's life on a real cluster: upgrades, two replicas, an uninstall and a new install restart no engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from e2e import manifests, product, traffic, waits
from e2e.conftest import Space

pytestmark = pytest.mark.cluster

SYSTEM = product.SYSTEM_NAMESPACE
OPERATOR = "app.kubernetes.io/name=modelfleet"
LEASE = ("lease", "modelfleet-operator")


@pytest.fixture
def chart_restored(fleet: product.Product) -> Iterator[product.Product]:
    """The fleet; the release is as other tests expect it when this one ends, however it ends."""
    yield fleet
    fleet.install()


def engine_pods(space: Space, name: str) -> dict[str, int]:
    """UID of each engine pod with its restarts."""
    return {
        pod["metadata"]["uid"]: sum(item["restartCount"] for item in pod["status"].get("containerStatuses", []))
        for pod in waits.pods(space.kubectl, name, namespace=space.namespace)
    }


def operator_pods(fleet: product.Product) -> set[str]:
    """Names of the operator's pods that are not on their way out."""
    pods = fleet.kubectl.list("pods", namespace=SYSTEM, selector=OPERATOR)
    return {pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]}


def lease_holder(fleet: product.Product) -> str:
    """The pod that holds the Lease, or nothing."""
    lease = fleet.kubectl.get(*LEASE, namespace=SYSTEM) or {}
    return str(lease.get("spec", {}).get("holderIdentity") or "")


def assert_operator_is_at_work(space: Space, canary: str) -> None:
    """A new model gets its conditions: somebody reconciles."""
    manifest = manifests.example(suspend=True)
    manifest["metadata"]["name"] = canary
    space.apply(manifest)
    waits.condition(space.kubectl, canary, namespace=space.namespace, expected=("Ready", "False", "Suspended"))


def test_an_upgrade_an_uninstall_and_a_new_install_restart_no_engine(
    space: Space, chart_restored: product.Product
) -> None:
    name = space.apply(manifests.example())
    waits.settled(space.kubectl, name, namespace=space.namespace, replicas=1)
    engines = engine_pods(space, name)
    operators = operator_pods(chart_restored)

    chart_restored.install("--set-string=podAnnotations.example\\.com/round=two", "--set=logLevel=debug")
    assert not operator_pods(chart_restored) & operators
    assert_operator_is_at_work(space, "after-upgrade")
    assert engine_pods(space, name) == engines

    said = chart_restored.helm("uninstall", product.RELEASE, "--namespace", SYSTEM, "--wait", "--timeout=60s")
    assert "llmdeployments.modelfleet.dev" in said
    assert operator_pods(chart_restored) == set()
    kinds = "deploy,svc,sa,clusterrole,clusterrolebinding"
    assert chart_restored.kubectl.run("get", kinds, "-A", "-l", OPERATOR, "-o", "name") == ""
    with traffic.client(space.base_url(name)) as openai:
        assert "Paris" in traffic.answer(openai, question="Please tell me the capital of France in one sentence.")

    chart_restored.install()
    assert_operator_is_at_work(space, "after-install")
    waits.ready(space.kubectl, name, namespace=space.namespace)
    assert engine_pods(space, name) == engines


def test_with_two_replicas_the_second_takes_over_when_the_first_one_goes(
    space: Space, chart_restored: product.Product
) -> None:
    chart_restored.install("--set=replicas=2")
    first = waits.until(
        lambda: lease_holder(chart_restored),
        accept=lambda holder: holder in operator_pods(chart_restored),
        what="one of the two replicas leads",
    )
    assert len(operator_pods(chart_restored)) == 2
    assert_operator_is_at_work(space, "before")

    space.kubectl.run("delete", "pod", first, "-n", SYSTEM, "--grace-period=0", "--force")

    waits.until(
        lambda: lease_holder(chart_restored),
        accept=lambda holder: holder != first and holder in operator_pods(chart_restored),
        what="another replica leads",
    )
    assert_operator_is_at_work(space, "after")
