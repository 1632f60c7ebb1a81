"""One node of the local cluster: a containerd and a kubelet of its own, as host processes.

Several nodes live on one machine because nothing is shared: store, state, sockets, addresses and cgroup root.
Without a cgroup root of its own each kubelet would kill the other's pods as orphans.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster import cgroups, processes
from e2e.cluster.certificates import Authority, write_kubeconfig
from e2e.cluster.control_plane import CLUSTER_DOMAIN, ControlPlane
from e2e.cluster.network import NodeNetwork, cni_configuration
from e2e.cluster.shell import CommandError, run, wait_until
from e2e.cluster.toolchain import binary
from e2e.images.pause import PAUSE_IMAGE

DNS_SERVICE = "198.19.0.10"
CNI_PLUGINS = ("/usr/lib/cni", "/opt/cni/bin")
NAMESPACE = "k8s.io"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Node `index` of a cluster: what it is called and where it lives."""

    index: int
    cluster: str
    directory: Path
    store: Path

    @property
    def name(self) -> str:
        return f"{self.cluster}-{self.index + 1}"

    @property
    def network(self) -> NodeNetwork:
        return NodeNetwork(index=self.index)

    @property
    def socket(self) -> Path:
        return self.directory / "containerd.sock"

    @property
    def cgroup(self) -> str:
        return f"{self.cluster}-node-{self.index + 1}"


def ctr(node: Node, *arguments: str) -> str:
    """Runs containerd's own client against this node, in the namespace the kubelet uses."""
    return run(["ctr", "--address", str(node.socket), "--namespace", NAMESPACE, *arguments])


def containerd_configuration(node: Node) -> str:
    """containerd's TOML (version 2 of the format: containerd 1.6, 1.7 and 2)."""
    plugins = next((path for path in CNI_PLUGINS if (Path(path) / "bridge").exists()), CNI_PLUGINS[0])
    return f"""version = 2
root = "{node.store}"
state = "{node.directory}/containerd"

[grpc]
  address = "{node.socket}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{node.directory}/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = true
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true

[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
  default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
  Root = "{node.directory}/runc"

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{plugins}"
  conf_dir = "{node.directory}/cni"
"""


def kubelet_configuration(node: Node, *, pki: Path) -> dict[str, object]:
    """The KubeletConfiguration; `pki` is where the cluster's certificates are."""
    address = node.network.address
    resolver = Path("/run/systemd/resolve/resolv.conf")
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": address,
        "healthzBindAddress": address,
        "containerRuntimeEndpoint": f"unix://{node.socket}",
        "tlsCertFile": str(pki / f"{_server_name(node)}.crt"),
        "tlsPrivateKeyFile": str(pki / f"{_server_name(node)}.key"),
        "authentication": {"x509": {"clientCAFile": str(pki / "ca.crt")}, "anonymous": {"enabled": False}},
        "authorization": {"mode": "Webhook"},
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": CLUSTER_DOMAIN,
        # systemd-resolved's stub listens on the loopback, which in a pod is the pod itself.
        "resolvConf": str(resolver if resolver.exists() else "/etc/resolv.conf"),
        # There may be no systemd, and the host may still have version 1 of control groups.
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{node.cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        # Without CAP_SYS_RESOURCE (nested virtual machines) a negative value is refused.
        "oomScoreAdj": 0,
        # Images are imported, not pulled: one that is collected is gone. A nearly full disk is the host's affair.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "podLogsDir": str(node.directory / "pod-logs"),
        "volumePluginDir": str(node.directory / "volume-plugins"),
        "serializeImagePulls": False,
        "shutdownGracePeriod": "0s",
    }


def start_containerd(node: Node) -> None:
    """Writes the configuration and starts containerd; returns when it answers."""
    (node.directory / "cni").mkdir(parents=True, exist_ok=True)
    node.store.mkdir(parents=True, exist_ok=True)
    cni = cni_configuration(node.network, state=node.directory)
    (node.directory / "cni" / "10-modelfleet.conflist").write_text(json.dumps(cni, indent=2))
    configuration = node.directory / "containerd.toml"
    configuration.write_text(containerd_configuration(node))
    launch_containerd(node, configuration=configuration)


def launch_containerd(node: Node, *, configuration: Path) -> processes.ProcessRecord:
    """Starts containerd with this configuration and waits until it answers on the node's socket."""
    record = processes.start(
        f"containerd-{node.index + 1}",
        ["containerd", "--config", str(configuration), "--log-level", "info"],
        records=node.directory.parent / "pids",
        log=node.directory.parent / "logs" / f"containerd-{node.index + 1}.log",
    )

    def answers() -> bool:
        return node.socket.is_socket() and bool(_quiet_ctr_version(node))

    wait_until(answers, what=f"containerd of {node.name} answers (log: {record.log})", timeout_seconds=30)
    return record


def write_node_credentials(node: Node, *, plane: ControlPlane, authority: Authority) -> None:
    """Signs the kubelet's two certificates, as server and as client, and writes its kubeconfig."""
    user = f"system:node:{node.name}"
    client = authority.client(f"kubelet-{node.index + 1}", user=user, groups=["system:nodes"])
    authority.server(_server_name(node), hosts=[node.network.address, node.name])
    node.directory.mkdir(parents=True, exist_ok=True)
    write_kubeconfig(
        node.directory / "kubeconfig", server=plane.url, authority=authority.files.certificate, client=client
    )


def start_kubelet(node: Node, *, plane: ControlPlane) -> None:
    """Starts the kubelet, which registers the node; the credentials must have been written."""
    configuration = node.directory / "kubelet.json"
    configuration.write_text(json.dumps(kubelet_configuration(node, pki=plane.pki), indent=2))
    cgroups.create(node.cgroup)
    processes.start(
        f"kubelet-{node.index + 1}",
        [
            str(binary("kubelet")),
            f"--config={configuration}",
            f"--kubeconfig={node.directory / 'kubeconfig'}",
            f"--hostname-override={node.name}",
            f"--node-ip={node.network.address}",
            f"--root-dir={node.directory / 'kubelet'}",
            f"--cert-dir={node.directory / 'pki'}",
        ],
        records=plane.records,
        log=plane.log(f"kubelet-{node.index + 1}"),
    )


def _server_name(node: Node) -> str:
    return f"kubelet-server-{node.index + 1}"


def _quiet_ctr_version(node: Node) -> str:
    try:
        return ctr(node, "version")
    except CommandError:
        return ""
