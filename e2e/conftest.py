"""Fixtures of the tests on a real cluster: one cluster a session, one namespace a test, a dump when a test fails."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from e2e import product
from e2e.cluster.fixtures import api_server
from e2e.cluster.shell import CommandError
from e2e.kubectl import Kubectl, Manifest

__all__ = ["api_server"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """A namespace with the demo model's claim, on a cluster where modelfleet is installed."""

    fleet: product.Product
    namespace: str

    @property
    def kubectl(self) -> Kubectl:
        """The cluster's kubectl."""
        return self.fleet.kubectl

    def apply(self, manifest: Manifest) -> str:
        """Applies an LLMDeployment here and returns its name."""
        self.kubectl.apply(manifest, namespace=self.namespace)
        return str(manifest["metadata"]["name"])

    def base_url(self, name: str) -> str:
        """The model's URL by its ClusterIP: the machine that runs the tests is on the cluster's network."""
        service = self.kubectl.get("service", name, namespace=self.namespace)
        assert service is not None, f"service {name} is missing"
        return f"http://{service['spec']['clusterIP']}/v1"


@pytest.fixture(scope="session")
def fleet() -> Iterator[product.Product]:
    """The cluster with this tree's chart installed; taken down at the end only if it was not up before."""
    was_up = _is_up()
    product.cluster_command("up")
    product.load_images()
    connected = product.connect()
    connected.install()
    yield connected
    if not was_up:
        product.cluster_command("down")


def _is_up() -> bool:
    try:
        Kubectl(kubeconfig=product.kubeconfig_path()).run("get", "--raw", "/readyz", timeout_seconds=10)
    except CommandError:
        return False
    return True


@pytest.fixture
def space(fleet: product.Product, request: pytest.FixtureRequest) -> Iterator[Space]:
    """A fresh namespace; what is in it is printed when the test failed, and removed in any case."""
    namespace = f"e2e-{secrets.token_hex(4)}"
    fleet.provide_model(namespace)
    failures = request.session.testsfailed
    yield Space(fleet=fleet, namespace=namespace)
    if request.session.testsfailed > failures:
        dump(fleet, namespace)
    fleet.kubectl.run("delete", "namespace", namespace, "--wait=false")
    fleet.kubectl.run("delete", "pv", f"{namespace}-{product.MODEL_CLAIM}", "--wait=false")


def dump(fleet: product.Product, namespace: str) -> None:
    """Prints nodes, the namespace's objects and events, and the ends of the logs."""
    for command in (
        ("get", "nodes", "-o", "wide"),
        ("get", "llm,deploy,pods,svc,pvc", "-n", namespace, "-o", "wide"),
        ("get", "llm", "-n", namespace, "-o", "yaml"),
        ("get", "events", "-n", namespace, "--sort-by=.lastTimestamp"),
        ("logs", "-n", namespace, "-l", "modelfleet.dev/model", "--all-containers", "--tail=40", "--prefix"),
        ("logs", "-n", product.SYSTEM_NAMESPACE, "-l", "app.kubernetes.io/name=modelfleet", "--tail=60"),
    ):
        try:
            print(f"--- kubectl {' '.join(command)}\n{fleet.kubectl.run(*command)}")
        except CommandError as error:
            print(f"--- kubectl {' '.join(command)} failed: {error}")
