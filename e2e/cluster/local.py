"""The local provider: upstream Kubernetes components on this machine, as root, one cluster at a time.

State goes with `down`; containerd's image stores stay in the cache, so that `up` again imports nothing, until
`down --purge`. One cluster at a time, because its addresses and bridges are fixed.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from e2e.cluster import (
    cleanup,
    control_plane,
    gpus,
    network,
    node_images,
    prerequisites,
    processes,
    services,
)
from e2e.cluster.certificates import Authority
from e2e.cluster.interface import MAXIMUM_NODES, ClusterOptions, ClusterStatus, ComponentStatus
from e2e.cluster.node import Node, start_containerd, start_kubelet, write_node_credentials
from e2e.cluster.paths import state_directory, store_directory
from e2e.cluster.shell import UserError, phase, wait_until
from e2e.cluster.toolchain import TOOLS, binary
from e2e.images.oci import ImageLayout
from e2e.images.pause import PAUSE_IMAGE, build_pause

SECURE_PORT = 6443
# Written when `up` has come to its end: the indices of the nodes it started.
UP = "up.json"


class LocalCluster:
    """The cluster `name` on this machine (see `interface.Cluster`)."""

    provider = "local"

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = state_directory(name)
        self._stores = store_directory(name)

    @property
    def kubeconfig(self) -> Path:
        return self.state / "admin.kubeconfig"

    def up(self, options: ClusterOptions) -> None:
        """See `interface.Cluster.up`; more nodes than before are added to a running cluster."""
        prerequisites.require()
        if self._is_healthy():
            running = self._nodes_up()
        else:
            running = []
            self._refuse_neighbours()
            if self.leftovers():
                with phase("removing what was left"):
                    self.down()
            self._start_control_plane()
        added = [node for node in self._nodes() if node.index not in running][: options.nodes - len(running)]
        if added:
            self._start_nodes(added)
        if options.gpus is not None:
            for node in self._nodes()[: options.nodes]:
                gpus.advertise(options.gpus, node=node.name, kubectl=lambda args: self._kubectl(*args))

    def down(self, *, purge_images: str = "keep") -> None:
        """See `interface.Cluster.down`."""
        cleanup.tear_down(self.state, nodes=self._nodes())
        if purge_images == "purge":
            cleanup.remove_tree(self._stores)

    def status(self) -> ClusterStatus:
        """See `interface.Cluster.status`."""
        components = [
            ComponentStatus(name=r.name, pid=r.pid, is_running=processes.is_alive(r), log=r.log)
            for r in processes.read_records(self.state / "pids")
        ]
        is_up = self._is_healthy()
        ready = self._ready_nodes() if is_up else {}
        store = sum(file.stat().st_size for file in self._stores.glob("*/io.containerd.content.v1.content/blobs/*/*"))
        return ClusterStatus(
            provider=self.provider,
            is_up=is_up,
            nodes=len(ready),
            ready_nodes=sum(ready.values()),
            components=components,
            image_store_bytes=store,
        )

    def load_image(self, image: str) -> None:
        """See `interface.Cluster.load_image`; an image a node already has costs nothing."""
        if not self._is_healthy():
            raise UserError("the cluster is not up: `python -m e2e.cluster up`")
        for node in self._nodes():
            if node.index in self._nodes_up():
                node_images.load(node, image=image)

    def component_logs(self) -> dict[str, Path]:
        """See `interface.Cluster.component_logs`."""
        return {path.stem: path for path in sorted((self.state / "logs").glob("*.log"))}

    def leftovers(self) -> list[str]:
        """What of this cluster is on the machine, one line each; empty after `down`."""
        return cleanup.leftovers(self.state, nodes=self._nodes())

    def _nodes(self) -> list[Node]:
        return [
            Node(
                index=index,
                cluster=self.name,
                directory=self.state / f"n{index + 1}",
                store=self._stores / f"n{index + 1}",
            )
            for index in range(MAXIMUM_NODES)
        ]

    def _plane(self) -> control_plane.ControlPlane:
        saved = self.state / "ports.json"
        etcd, peer = json.loads(saved.read_text()) if saved.exists() else control_plane.free_ports(2)
        self.state.mkdir(parents=True, exist_ok=True)
        saved.write_text(json.dumps([etcd, peer]))
        return control_plane.ControlPlane(
            directory=self.state,
            address=network.NodeNetwork(index=0).address,
            secure_port=SECURE_PORT,
            etcd_port=etcd,
            etcd_peer_port=peer,
        )

    def _start_control_plane(self) -> None:
        for tool in TOOLS:
            binary(tool.names[0])
        plane = self._plane()
        cleanup.remember_machine(self.state)
        with phase("network and certificates"):
            network.set_up_machine(self.state)
            network.set_up_node(network.NodeNetwork(index=0))
            authority = Authority("ca", directory=plane.pki)
            credentials = control_plane.write_credentials(plane, authority=authority)
            for node in self._nodes():
                write_node_credentials(node, plane=plane, authority=authority)
        with phase("control plane"):
            control_plane.start_etcd(plane)
            control_plane.start_api_server(plane, credentials=credentials)
            control_plane.wait_ready(plane)
            control_plane.start_controllers(plane, credentials=credentials)
            services.start_services(plane, node_name=self._nodes()[0].name)

    def _start_nodes(self, nodes: list[Node]) -> None:
        plane = self._plane()
        layout = ImageLayout()
        build_pause(layout)
        with phase("containerd"):
            for node in nodes:
                if node.index > 0:
                    network.set_up_node(node.network)
            with ThreadPoolExecutor() as pool:
                list(pool.map(start_containerd, nodes))
            for node in nodes:
                node_images.load(node, image=PAUSE_IMAGE)
        with phase("nodes Ready"):
            for node in nodes:
                start_kubelet(node, plane=plane)
            names = {node.name for node in nodes}

            def are_ready() -> bool:
                processes.require_alive(processes.read_records(plane.records))
                return names <= {name for name, ready in self._ready_nodes().items() if ready}

            wait_until(
                are_ready,
                what=f"{', '.join(sorted(names))} Ready (logs: {self.state / 'logs'})",
                timeout_seconds=90,
                pause_seconds=0.3,
            )
            # Until then the API server refuses every pod of the namespace.
            arguments = ("get", "serviceaccount", "default", "--ignore-not-found", "-o", "name")
            wait_until(lambda: bool(self._kubectl(*arguments)), what="a default service account", timeout_seconds=60)
        started = sorted({*self._nodes_up(), *(node.index for node in nodes)})
        (self.state / UP).write_text(json.dumps(started))

    def _nodes_up(self) -> list[int]:
        marker = self.state / UP
        return [int(index) for index in json.loads(marker.read_text())] if marker.exists() else []

    def _is_healthy(self) -> bool:
        """Whether `up` came to its end and everything it started still runs and answers."""
        records = processes.read_records(self.state / "pids")
        if not self._nodes_up() or not all(processes.is_alive(record) for record in records):
            return False
        bridges = {self._nodes()[index].network.bridge for index in self._nodes_up()}
        if not bridges <= set(network.bridges()):
            return False
        return control_plane.is_serving(self._plane())

    def _ready_nodes(self) -> dict[str, bool]:
        listed = json.loads(self._kubectl("get", "nodes", "-o", "json"))["items"]
        return {
            node["metadata"]["name"]: any(
                condition["type"] == "Ready" and condition["status"] == "True"
                for condition in node["status"]["conditions"]
            )
            for node in listed
        }

    def _kubectl(self, *arguments: str) -> str:
        return services.kubectl(self._plane(), *arguments)

    def _refuse_neighbours(self) -> None:
        for record in processes.find(("kubelet", "kube-proxy"), argument="--"):
            if record.pid not in {own.pid for own in processes.read_records(self.state / "pids")}:
                raise UserError(f"another Kubernetes node runs here ({record.name}, pid {record.pid}): stop it first")
