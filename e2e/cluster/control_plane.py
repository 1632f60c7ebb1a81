"""etcd, API server, controller manager and scheduler: their credentials, flags and start, as host processes.

The API-server-only mode uses the first two, the local cluster all of them. What runs pods is not here (`node`).
"""

from __future__ import annotations

import http.client
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster import processes
from e2e.cluster.certificates import Authority, KeyPair, service_account_keys, write_kubeconfig
from e2e.cluster.shell import wait_until
from e2e.cluster.toolchain import binary

SERVICE_RANGE = "198.19.0.0/16"
KUBERNETES_SERVICE = "198.19.0.1"
CLUSTER_DOMAIN = "cluster.local"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Everything the control plane's components show each other."""

    authority: KeyPair
    front_proxy: KeyPair
    front_proxy_authority: Path
    service_accounts: KeyPair
    server: KeyPair
    kubelet_client: KeyPair
    admin: KeyPair
    controller_manager: KeyPair
    scheduler: KeyPair
    proxy: KeyPair
    dns: KeyPair


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlane:
    """Where one control plane lives: its directories, address and ports."""

    directory: Path
    address: str
    secure_port: int
    etcd_port: int
    etcd_peer_port: int
    dies_with: str = "nobody"

    @property
    def url(self) -> str:
        return f"https://{self.address}:{self.secure_port}"

    @property
    def pki(self) -> Path:
        return self.directory / "pki"

    @property
    def records(self) -> Path:
        return self.directory / "pids"

    def log(self, name: str) -> Path:
        return self.directory / "logs" / f"{name}.log"

    def kubeconfig(self, name: str) -> Path:
        return self.directory / f"{name}.kubeconfig"


def write_credentials(plane: ControlPlane, *, authority: Authority) -> Credentials:
    """Makes the components' certificates and kubeconfigs, and the aggregation layer's authority."""
    directory = plane.pki
    front_proxy = Authority("front-proxy-ca", directory=directory)
    service_names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    hosts = [plane.address, "127.0.0.1", "localhost", KUBERNETES_SERVICE, *service_names]
    hosts.append(f"kubernetes.default.svc.{CLUSTER_DOMAIN}")
    credentials = Credentials(
        authority=authority.files,
        front_proxy=front_proxy.client("front-proxy-client", user="front-proxy-client"),
        front_proxy_authority=front_proxy.files.certificate,
        service_accounts=service_account_keys(directory),
        server=authority.server("kube-apiserver", hosts=hosts),
        kubelet_client=authority.client("kubelet-client", user="kube-apiserver", groups=["system:masters"]),
        admin=authority.client("admin", user="admin", groups=["system:masters"]),
        controller_manager=authority.client("controller-manager", user="system:kube-controller-manager"),
        scheduler=authority.client("scheduler", user="system:kube-scheduler"),
        proxy=authority.client("kube-proxy", user="system:kube-proxy"),
        dns=authority.client("coredns", user="system:coredns"),
    )
    for name, client in (
        ("admin", credentials.admin),
        ("controller-manager", credentials.controller_manager),
        ("scheduler", credentials.scheduler),
        ("kube-proxy", credentials.proxy),
        ("coredns", credentials.dns),
    ):
        write_kubeconfig(plane.kubeconfig(name), server=plane.url, authority=authority.files.certificate, client=client)
    return credentials


def start_etcd(plane: ControlPlane) -> processes.ProcessRecord:
    """etcd on the loopback, without fsync: the data of a test cluster need not survive a power cut."""
    client = f"http://127.0.0.1:{plane.etcd_port}"
    peer = f"http://127.0.0.1:{plane.etcd_peer_port}"
    command = [
        str(binary("etcd")),
        f"--data-dir={plane.directory / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]
    return _start(plane, "etcd", command=command)


def start_api_server(
    plane: ControlPlane, *, credentials: Credentials, extra_flags: tuple[str, ...] = ()
) -> processes.ProcessRecord:
    """kube-apiserver with RBAC, Node authorization and a working aggregation layer."""
    issuer = f"https://kubernetes.default.svc.{CLUSTER_DOMAIN}"
    command = [
        str(binary("kube-apiserver")),
        f"--advertise-address={plane.address}",
        f"--bind-address={plane.address}",
        f"--secure-port={plane.secure_port}",
        f"--etcd-servers=http://127.0.0.1:{plane.etcd_port}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        f"--tls-cert-file={credentials.server.certificate}",
        f"--tls-private-key-file={credentials.server.key}",
        f"--client-ca-file={credentials.authority.certificate}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--service-account-issuer={issuer}",
        f"--service-account-key-file={credentials.service_accounts.certificate}",
        f"--service-account-signing-key-file={credentials.service_accounts.key}",
        f"--kubelet-client-certificate={credentials.kubelet_client.certificate}",
        f"--kubelet-client-key={credentials.kubelet_client.key}",
        f"--kubelet-certificate-authority={credentials.authority.certificate}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--requestheader-client-ca-file={credentials.front_proxy_authority}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-username-headers=X-Remote-User",
        f"--proxy-client-cert-file={credentials.front_proxy.certificate}",
        f"--proxy-client-key-file={credentials.front_proxy.key}",
        "--enable-aggregator-routing=true",
        *extra_flags,
    ]
    return _start(plane, "kube-apiserver", command=command)


def start_controllers(plane: ControlPlane, *, credentials: Credentials) -> None:
    """kube-controller-manager and kube-scheduler; alone, so without leader election, which would cost seconds."""
    authority = credentials.authority
    for component, own_flags in (
        (
            "kube-controller-manager",
            [
                f"--service-account-private-key-file={credentials.service_accounts.key}",
                f"--root-ca-file={authority.certificate}",
                f"--cluster-signing-cert-file={authority.certificate}",
                f"--cluster-signing-key-file={authority.key}",
                f"--requestheader-client-ca-file={credentials.front_proxy_authority}",
                "--use-service-account-credentials=true",
                "--controllers=*,-node-ipam-controller",
                # A claim that is seen before its volume waits for the next round: 15 s by default.
                "--pvclaimbinder-sync-period=1s",
                f"--flex-volume-plugin-dir={plane.directory / 'volume-plugins'}",
            ],
        ),
        ("kube-scheduler", []),
    ):
        kubeconfig = plane.kubeconfig(component.removeprefix("kube-"))
        command = [
            str(binary(component)),
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            f"--bind-address={plane.address}",
            f"--cert-dir={plane.directory / 'pki' / component}",
            "--leader-elect=false",
            *own_flags,
        ]
        _start(plane, component, command=command)


def wait_ready(plane: ControlPlane, *, timeout_seconds: float = 60.0) -> None:
    """Returns when `/readyz` answers 200; a component that ended is reported with its last lines at once."""

    def is_ready() -> bool:
        processes.require_alive(processes.read_records(plane.records))
        return is_serving(plane)

    wait_until(is_ready, what=f"the API server at {plane.url} is ready", timeout_seconds=timeout_seconds)


def is_serving(plane: ControlPlane) -> bool:
    """Whether the API server answers `/readyz` with 200 within two seconds."""
    pki = plane.pki
    if not (pki / "admin.crt").exists():
        return False
    context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
    context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
    connection = http.client.HTTPSConnection(plane.address, plane.secure_port, timeout=2.0, context=context)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def free_ports(count: int) -> list[int]:
    """Ports free on the loopback right now; all are held while they are collected, so no two are the same."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _start(plane: ControlPlane, name: str, *, command: list[str]) -> processes.ProcessRecord:
    return processes.start(name, command, records=plane.records, log=plane.log(name), dies_with=plane.dies_with)
