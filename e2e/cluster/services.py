"""What every cluster runs beside its nodes and control plane: kube-proxy and CoreDNS, here as host processes.

CoreDNS is a process and not a Deployment because DNS must work before any image is loaded, on a drained node and
after a node's death; pods reach it like any DNS, through the kube-dns Service, which has no selector but one
EndpointSlice that points to the process.
"""

from __future__ import annotations

import json
from typing import Any

from e2e.cluster import processes
from e2e.cluster.control_plane import CLUSTER_DOMAIN, ControlPlane
from e2e.cluster.network import POD_RANGE
from e2e.cluster.node import DNS_SERVICE
from e2e.cluster.shell import run
from e2e.cluster.toolchain import binary

DNS_PORT = 10053


def corefile(plane: ControlPlane, *, forward: bool) -> str:
    """CoreDNS's configuration; short times to live, because tests create and delete Services all the time."""
    upstream = "    forward . /etc/resolv.conf\n" if forward else ""
    return f""".:{DNS_PORT} {{
    bind {plane.address}
    errors
    ready {plane.address}:8181
    cache 5
    kubernetes {CLUSTER_DOMAIN} in-addr.arpa {{
        kubeconfig {plane.kubeconfig("coredns")}
        pods insecure
        ttl 5
        fallthrough in-addr.arpa
    }}
{upstream}}}
"""


def dns_manifests(plane: ControlPlane) -> list[dict[str, Any]]:
    """The kube-dns Service, its endpoint, and what CoreDNS may read."""
    metadata = {"name": "kube-dns", "namespace": "kube-system"}
    ports = [(protocol.lower(), protocol) for protocol in ("UDP", "TCP")]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "clusterIP": DNS_SERVICE,
            "ports": [
                {"name": name, "protocol": protocol, "port": 53, "targetPort": DNS_PORT} for name, protocol in ports
            ],
        },
    }
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**metadata, "labels": {"kubernetes.io/service-name": "kube-dns"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [plane.address], "conditions": {"ready": True}}],
        "ports": [{"name": name, "protocol": protocol, "port": DNS_PORT} for name, protocol in ports],
    }
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "system:coredns"},
        "rules": [
            {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
        ],
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "system:coredns"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:coredns"}],
    }
    return [service, endpoints, role, binding]


def proxy_configuration(plane: ControlPlane, *, node_name: str) -> dict[str, Any]:
    """The KubeProxyConfiguration; one kube-proxy serves all nodes, because they share one machine's iptables."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": str(plane.kubeconfig("kube-proxy"))},
        "clusterCIDR": POD_RANGE,
        "detectLocalMode": "ClusterCIDR",
        "hostnameOverride": node_name,
        "bindAddress": plane.address,
        "healthzBindAddress": f"{plane.address}:10256",
        "metricsBindAddress": f"{plane.address}:10249",
        # Half a second instead of one: tests wait for Services all the time.
        "iptables": {"localhostNodePorts": False, "minSyncPeriod": "0.5s"},
        # Zero: leave the machine's connection tracking as it is.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
        "oomScoreAdj": 0,
    }


def start_services(plane: ControlPlane, *, node_name: str) -> None:
    """Starts both; the API server has to be ready."""
    manifests = {"apiVersion": "v1", "kind": "List", "items": dns_manifests(plane)}
    kubectl(plane, "apply", "-f", "-", stdin=json.dumps(manifests))
    core = plane.directory / "Corefile"
    core.write_text(corefile(plane, forward=has_resolver()))
    proxy = plane.directory / "kube-proxy.json"
    proxy.write_text(json.dumps(proxy_configuration(plane, node_name=node_name), indent=2))
    for name, command in (
        ("kube-proxy", [str(binary("kube-proxy")), f"--config={proxy}"]),
        ("coredns", [str(binary("coredns")), "-conf", str(core)]),
    ):
        processes.start(name, command, records=plane.records, log=plane.log(name))


def kubectl(plane: ControlPlane, *arguments: str, stdin: str | None = None) -> str:
    """Runs kubectl as the administrator and returns its output."""
    return run([str(binary("kubectl")), f"--kubeconfig={plane.kubeconfig('admin')}", *arguments], stdin=stdin)


def has_resolver() -> bool:
    """Whether this machine has a resolver CoreDNS could ask for names outside the cluster."""
    try:
        with open("/etc/resolv.conf") as file:
            return any(line.split()[:1] == ["nameserver"] for line in file)
    except FileNotFoundError:
        return False
