"""modelfleet on a cluster, as a user installs it: images, the Helm chart, and a claim that holds the demo model.

Shared by the demo and the e2e tests, so that what is shown is what is tested. Works on both cluster providers.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from e2e import demo_model, images
from e2e.cluster import paths, volumes
from e2e.cluster.interface import volume_directory
from e2e.cluster.shell import CommandError, run
from e2e.cluster.toolchain import binary
from e2e.kubectl import Kubectl

RELEASE = "modelfleet"
SYSTEM_NAMESPACE = "modelfleet-system"
OPERATOR = "deployment/modelfleet-operator"
# The fleet's URL inside the cluster, where the chart was installed with `gateway.enabled=true`.
GATEWAY_SERVICE = "modelfleet"
FLEET_URL = f"http://{GATEWAY_SERVICE}.{SYSTEM_NAMESPACE}/v1"
CHART = paths.REPOSITORY / "helm" / "modelfleet"
MODEL_CLAIM = "models"
IMAGES = ("control", "engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """Handles to one running cluster with modelfleet's images on it."""

    kubectl: Kubectl
    control_image: str
    engine_image: str

    def helm(self, *arguments: str, timeout_seconds: float = 180.0) -> str:
        """Runs helm against the cluster."""
        command = [str(binary("helm")), "--kubeconfig", str(self.kubectl.kubeconfig), *arguments]
        return run(command, timeout_seconds=timeout_seconds)

    def install(self, *extra: str) -> None:
        """Installs or upgrades the chart with this tree's images and waits until the operator is ready."""
        self.helm(
            "upgrade",
            "--install",
            RELEASE,
            str(CHART),
            "--namespace",
            SYSTEM_NAMESPACE,
            "--create-namespace",
            *self.image_values(),
            *extra,
            "--wait",
            "--timeout=120s",
        )

    def scale_operator(self, replicas: int) -> None:
        """Runs so many operators."""
        self.kubectl.run("scale", OPERATOR, "-n", SYSTEM_NAMESPACE, f"--replicas={replicas}")

    def wait_for_operator(self) -> None:
        """Waits until the operator's pods are ready."""
        self.kubectl.run("rollout", "status", OPERATOR, "-n", SYSTEM_NAMESPACE, "--timeout=60s", timeout_seconds=70)

    def image_values(self) -> list[str]:
        """The `--set` arguments that name this tree's images."""
        repository, _, tag = self.control_image.rpartition(":")
        return [
            f"--set-string=image.repository={repository}",
            f"--set-string=image.tag={tag}",
            "--set-string=image.pullPolicy=IfNotPresent",
            f"--set-string=engine.image={self.engine_image}",
            "--set-string=engine.pullPolicy=IfNotPresent",
        ]

    def provide_model(self, namespace: str, *, claim: str = MODEL_CLAIM) -> None:
        """A read-only claim in `namespace` whose volume is the host directory of prepared models."""
        self.kubectl.ensure_namespace(namespace)
        shared = volume_directory() / claim
        demo_model.copy_demo_model(shared / demo_model.MODEL_NAME)
        self.kubectl.apply(*volumes.host_volume(claim, namespace=namespace, host_path=shared))
        bound = "--for=jsonpath={.status.phase}=Bound"
        self.kubectl.run("wait", f"pvc/{claim}", "-n", namespace, bound, "--timeout=30s")


def cluster_command(*arguments: str) -> None:
    """Runs `python -m e2e.cluster …` with its progress on this terminal."""
    code = subprocess.run([sys.executable, "-m", "e2e.cluster", *arguments], check=False).returncode
    if code != 0:
        raise CommandError(f"python -m e2e.cluster {' '.join(arguments)}: exit code {code}")


def kubeconfig_path() -> Path:
    """The running cluster's kubeconfig."""
    return Path(run([sys.executable, "-m", "e2e.cluster", "kubeconfig"]).strip())


def load_images(names: Sequence[str] = IMAGES) -> None:
    """Builds what is stale and hands it to every node; both steps skip what is there already."""
    for name in names:
        cluster_command("load-image", name)


def connect() -> Product:
    """The product on the cluster that is up, with the references of this tree's images."""
    return Product(
        kubectl=Kubectl(kubeconfig=kubeconfig_path()),
        control_image=images.image_reference("control"),
        engine_image=images.image_reference("engine"),
    )


@contextmanager
def client_pod(fleet: Product, *, namespace: str) -> Iterator[list[str]]:
    """A pod of the control image in `namespace`; yields kubectl arguments that run a Python source in it.

    exec and not `kubectl run --stdin`: attaching to a pod that lives for a second can come too late for its output.
    """
    name = f"client-{secrets.token_hex(3)}"
    overrides = {"spec": {"automountServiceAccountToken": False, "enableServiceLinks": False}}
    fleet.kubectl.run(
        "run",
        name,
        f"--namespace={namespace}",
        f"--image={fleet.control_image}",
        "--image-pull-policy=IfNotPresent",
        "--restart=Never",
        f"--overrides={json.dumps(overrides)}",
        "--command",
        "--",
        "sleep",
        "infinity",
    )
    try:
        fleet.kubectl.run("wait", f"pod/{name}", f"--namespace={namespace}", "--for=condition=Ready", "--timeout=60s")
        yield ["exec", "--stdin", name, f"--namespace={namespace}", "--", "python3", "-u", "-c"]
    finally:
        fleet.kubectl.run("delete", "pod", name, f"--namespace={namespace}", "--now", "--wait=false")
