"""The kind provider: the same cluster on Docker, for machines that have Docker and kind.

The project's own CI machines have neither, so this provider is tested by its configuration and its command lines
(`tests_cluster/test_kind.py`), and not against a Docker daemon.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from e2e.cluster import gpus
from e2e.cluster.interface import ClusterOptions, ClusterStatus, ComponentStatus, volume_directory
from e2e.cluster.paths import state_directory
from e2e.cluster.shell import Runner, UserError, phase, run
from e2e.cluster.toolchain import KUBERNETES_VERSION
from e2e.images.oci import ImageLayout


def kind_configuration(*, nodes: int, volumes: Path) -> dict[str, Any]:
    """kind's configuration: the control plane is the first node and takes pods, too (kind allows that for one).

    `volumes` is seen by every node under the path it has on this machine.
    """
    mounts = [{"hostPath": str(volumes), "containerPath": str(volumes)}]
    # Without the taint the control-plane node of a larger cluster takes pods like the local provider's first node.
    untainted = "kind: InitConfiguration\nnodeRegistration:\n  taints: []\n"
    roles = ["control-plane"] + ["worker"] * (nodes - 1)
    return {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "networking": {"podSubnet": "198.18.0.0/16", "serviceSubnet": "198.19.0.0/16"},
        "kubeadmConfigPatches": [untainted],
        "nodes": [{"role": role, "extraMounts": mounts} for role in roles],
    }


class KindCluster:
    """The kind cluster `name` (see `interface.Cluster`); `runner` runs docker, kind and kubectl."""

    provider = "kind"

    def __init__(self, name: str, *, runner: Runner = run) -> None:
        self.name = name
        # Not the local provider's place: that is root's, and docker needs no root.
        configured = os.environ.get("MODELFLEET_STATE")
        self._state = state_directory(name) if configured else volume_directory().parent / "kind" / name
        self._run = runner

    @property
    def kubeconfig(self) -> Path:
        return self._state / "admin.kubeconfig"

    def up(self, options: ClusterOptions) -> None:
        """See `interface.Cluster.up`. kind cannot add nodes to a running cluster: that is a UserError."""
        present = self._node_names()
        if present and len(present) < options.nodes:
            raise UserError(f"the kind cluster has {len(present)} nodes, not {options.nodes}: `down` first")
        if not present:
            self._create(options)
        self._state.mkdir(parents=True, exist_ok=True)
        self._run(["kind", "export", "kubeconfig", "--name", self.name, "--kubeconfig", str(self.kubeconfig)])
        with phase("nodes Ready"):
            self._kubectl(["wait", "--for=condition=Ready", "nodes", "--all", "--timeout=180s"])
        if options.gpus is not None:
            for node in self._node_names():
                gpus.advertise(options.gpus, node=node, kubectl=self._kubectl)

    def down(self, *, purge_images: str = "keep") -> None:
        """See `interface.Cluster.down`. The nodes' images go in any case: they live in the node containers."""
        self._run(["kind", "delete", "cluster", "--name", self.name])
        self.kubeconfig.unlink(missing_ok=True)

    def status(self) -> ClusterStatus:
        """See `interface.Cluster.status`; components are the node containers, whose store is Docker's."""
        names = self._node_names()
        if not names:
            return ClusterStatus(provider=self.provider, is_up=False)
        inspected = json.loads(self._run(["docker", "inspect", *names]))
        components = [
            ComponentStatus(
                name=container["Name"].lstrip("/"),
                pid=container["State"]["Pid"],
                is_running=container["State"]["Running"],
                log=f"docker logs {container['Name'].lstrip('/')}",
            )
            for container in inspected
        ]
        return ClusterStatus(
            provider=self.provider,
            is_up=all(component.is_running for component in components),
            nodes=len(names),
            ready_nodes=self._ready_nodes(),
            components=components,
        )

    def load_image(self, image: str) -> None:
        """See `interface.Cluster.load_image`; an image that Docker itself built comes from Docker's store."""
        if Path(image).is_file():
            self._load_archive(Path(image))
            return
        layout = ImageLayout()
        if image not in layout.references():
            self._run(["kind", "load", "docker-image", image, "--name", self.name])
            return
        with tempfile.TemporaryDirectory(prefix="modelfleet-image-") as directory:
            archive = Path(directory) / "image.tar"
            with archive.open("wb") as output:
                layout.stream(image, output)
            self._load_archive(archive)

    def component_logs(self) -> dict[str, Path]:
        """See `interface.Cluster.component_logs`: none as files; `kind export logs` collects them."""
        return {}

    def _create(self, options: ClusterOptions) -> None:
        volume_directory().mkdir(parents=True, exist_ok=True)
        self._state.mkdir(parents=True, exist_ok=True)
        configuration = self._state / "kind.json"
        settings = kind_configuration(nodes=options.nodes, volumes=volume_directory())
        configuration.write_text(json.dumps(settings, indent=2))
        with phase("kind create cluster"):
            self._run(
                [
                    *("kind", "create", "cluster", "--name", self.name),
                    *("--image", f"kindest/node:{KUBERNETES_VERSION}"),
                    *("--config", str(configuration)),
                    *("--kubeconfig", str(self.kubeconfig)),
                ]
            )

    def _load_archive(self, archive: Path) -> None:
        self._run(["kind", "load", "image-archive", str(archive), "--name", self.name])

    def _node_names(self) -> list[str]:
        # Without a cluster kind says so on standard error and prints nothing.
        return sorted(self._run(["kind", "get", "nodes", "--name", self.name]).split())

    def _ready_nodes(self) -> int:
        template = '{.items[*].status.conditions[?(@.type=="Ready")].status}'
        return self._kubectl(["get", "nodes", "-o", f"jsonpath={template}"]).split().count("True")

    def _kubectl(self, arguments: Any) -> str:
        return self._run(["kubectl", f"--kubeconfig={self.kubeconfig}", *arguments])
