"""The cluster command itself, on the real thing: what it promises to tests, and that it leaves nothing behind.

These tests take the machine's cluster up and down: they are their own session (`make test` runs them before the
other end-to-end tests) and refuse to touch a cluster that is in use.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.cluster import network, processes
from e2e.cluster.certificates import Authority
from e2e.cluster.docker import has_docker_and_kind
from e2e.cluster.interface import ClusterOptions, SimulatedGpus, volume_directory
from e2e.cluster.local import LocalCluster
from e2e.cluster.shell import wait_until
from e2e.cluster.toolchain import binary
from e2e.cluster.volumes import host_volume
from e2e.images.build import build

pytestmark = pytest.mark.cluster

GPUS = SimulatedGpus(count=8, product="NVIDIA-H100-80GB-HBM3", memory_mebibytes=81559)
OPTIONS = ClusterOptions(nodes=2, gpus=GPUS)
AGGREGATED_SERVER = """
import http.server, json, ssl
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        user = self.headers.get("X-Remote-User")
        body = json.dumps({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "echo.test/v1",
                           "resources": [], "user": user, "path": self.path}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/tls/tls.crt", "/tls/tls.key")
server = http.server.ThreadingHTTPServer(("", 8443), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


class Machine:
    """What a cluster changes on a machine, to be compared before and after."""

    def __init__(self) -> None:
        names = (*network.SETTINGS, *network.KUBELET_SETTINGS)
        self.settings = {name: (Path("/proc/sys") / name).read_text() for name in names}
        self.links = sorted(link["ifname"] for link in json.loads(_output("ip", "-json", "link", "show")))
        self.routes = sorted(_output("ip", "route", "show", "table", "all").splitlines())
        self.mounts = sorted(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
        self.rules = sorted(
            line
            for command in ("iptables-save", "ip6tables-save")
            for line in _output(command).splitlines()
            # Not the headings: an empty table that a command brought about filters nothing.
            if line.startswith("-") or (line.startswith(":") and " ACCEPT " not in line)
        )


@pytest.fixture(scope="module")
def machine_before() -> Machine:
    if has_docker_and_kind():
        pytest.skip("kind is this machine's provider: the local provider's tests need its place")
    if LocalCluster("modelfleet").status().is_up:
        pytest.skip("a cluster is in use on this machine: these tests would take it down")
    LocalCluster("modelfleet").down()
    return Machine()


@pytest.fixture(scope="module")
def image() -> str:
    return build("base")


@pytest.fixture(scope="module")
def running(machine_before: Machine, image: str) -> Iterator[LocalCluster]:
    cluster = LocalCluster("modelfleet")
    cluster.up(OPTIONS)
    cluster.load_image(image)
    yield cluster
    cluster.down()


def test_up_on_a_running_cluster_is_done_within_two_seconds(running: LocalCluster) -> None:
    pids = [component.pid for component in running.status().components]
    started = time.monotonic()
    running.up(OPTIONS)
    assert time.monotonic() - started < 2.0
    assert [component.pid for component in running.status().components] == pids


def test_an_image_the_nodes_have_is_not_sent_again(running: LocalCluster, image: str) -> None:
    started = time.monotonic()
    running.load_image(image)
    assert time.monotonic() - started < 1.0


def test_a_service_answers_on_another_node_by_name_and_by_address(running: LocalCluster, image: str) -> None:
    data = volume_directory() / "cluster-test"
    data.mkdir(parents=True, exist_ok=True)
    (data / "greeting").write_text("from the host")
    command = ["python3", "-u", "-m", "http.server", "--directory", "/data", "8000"]
    web = _pod("web", image=image, node="modelfleet-1", command=command)
    web["metadata"]["labels"] = {"app": "web"}
    web["spec"]["containers"][0]["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
    web["spec"]["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8000}]},
    }
    client = _pod("client", image=image, node="modelfleet-2", command=["sleep", "600"])
    volume = host_volume("data", namespace="default", host_path=data)
    _apply(running, [*volume, web, service, client])
    _kubectl(running, "wait", "--for=condition=Ready", "pod/web", "pod/client", "--timeout=60s")

    address = _kubectl(running, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
    fetch = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=5).read().decode())"
    for host in ("web", "web.default", "web.default.svc.cluster.local", address):
        url = f"http://{host}/greeting"
        answer = _kubectl(running, "exec", "client", "--", "python3", "-c", fetch, url)
        assert answer.strip() == "from the host"
    assert "GET /greeting" in _kubectl(running, "logs", "web")


def test_a_node_has_as_many_gpus_as_it_claims(running: LocalCluster, image: str) -> None:
    fits, too_many = (_pod(name, image=image, node=None, command=["sleep", "600"]) for name in ("fits", "nine"))
    fits["spec"]["nodeSelector"] = {"nvidia.com/gpu.product": GPUS.product}
    fits["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "8"}}
    too_many["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "9"}}
    _apply(running, [fits, too_many])
    _kubectl(running, "wait", "--for=condition=Ready", "pod/fits", "--timeout=60s")
    _kubectl(running, "wait", "--for=condition=PodScheduled=false", "pod/nine", "--timeout=60s")
    message = _kubectl(running, "get", "pod", "nine", "-o", "jsonpath={.status.conditions[0].message}")
    assert message.startswith("0/2 nodes are available: 2 Insufficient nvidia.com/gpu.")


def test_the_aggregation_layer_passes_requests_and_the_user_on(
    running: LocalCluster, image: str, tmp_path: Path
) -> None:
    pair = Authority("echo-ca", directory=tmp_path).server("echo", hosts=["echo.default.svc"])
    pod = _pod("echo", image=image, node=None, command=["python3", "-c", AGGREGATED_SERVER])
    pod["metadata"]["labels"] = {"app": "echo"}
    pod["spec"]["containers"][0]["volumeMounts"] = [{"name": "tls", "mountPath": "/tls"}]
    pod["spec"]["containers"][0]["readinessProbe"] = {"tcpSocket": {"port": 8443}, "periodSeconds": 1}
    pod["spec"]["volumes"] = [{"name": "tls", "secret": {"secretName": "echo"}}]
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "echo"},
        "stringData": {"tls.crt": pair.certificate.read_text(), "tls.key": pair.key.read_text()},
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "echo"},
        "spec": {"selector": {"app": "echo"}, "ports": [{"port": 443, "targetPort": 8443}]},
    }
    registration = {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": "v1.echo.test"},
        "spec": {
            "group": "echo.test",
            "version": "v1",
            "groupPriorityMinimum": 1000,
            "versionPriority": 10,
            "insecureSkipTLSVerify": True,
            "service": {"name": "echo", "namespace": "default"},
        },
    }
    _apply(running, [secret, pod, service, registration])
    _kubectl(running, "wait", "--for=condition=Available", "apiservice/v1.echo.test", "--timeout=60s")
    answer = json.loads(_kubectl(running, "get", "--raw", "/apis/echo.test/v1/things"))
    assert (answer["user"], answer["path"]) == ("admin", "/apis/echo.test/v1/things")


@pytest.mark.parametrize("victim", ["kubelet-1", "containerd-1", "etcd"])
def test_up_after_a_kill_nine_starts_clean_and_keeps_the_images(running: LocalCluster, image: str, victim: str) -> None:
    _apply(running, [_pod("before", image=image, node="modelfleet-1", command=["sleep", "600"])])
    _kubectl(running, "wait", "--for=condition=Ready", "pod/before", "--timeout=60s")
    [record] = [each for each in processes.read_records(running.state / "pids") if each.name == victim]
    os.kill(record.pid, signal.SIGKILL)
    # The signal is sent, and the process ends a moment later.
    wait_until(lambda: not processes.is_alive(record), what=f"{victim} is gone", timeout_seconds=10)

    running.up(OPTIONS)

    assert running.status().ready_nodes == 2
    assert _kubectl(running, "get", "pods", "-A", "-o", "name") == ""
    _apply(running, [_pod("after", image=image, node="modelfleet-1", command=["sleep", "600"])])
    _kubectl(running, "wait", "--for=condition=Ready", "pod/after", "--timeout=60s")


def test_down_leaves_the_machine_as_it_was(running: LocalCluster, machine_before: Machine) -> None:
    records = processes.read_records(running.state / "pids")
    running.down()
    assert running.leftovers() == []
    assert [record for record in records if processes.is_alive(record)] == []
    after = Machine()
    assert after.mounts == machine_before.mounts
    assert after.links == machine_before.links
    assert after.routes == machine_before.routes
    assert after.rules == machine_before.rules
    assert after.settings == machine_before.settings


def _pod(name: str, *, image: str, node: str | None, command: list[str]) -> dict[str, Any]:
    container = {"name": "main", "image": image, "imagePullPolicy": "Never", "command": command}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "nodeSelector": {"kubernetes.io/hostname": node} if node else {},
            "containers": [container],
        },
    }


def _apply(cluster: LocalCluster, items: list[dict[str, Any]]) -> None:
    document = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    _kubectl(cluster, "apply", "--server-side", "-f", "-", stdin=document)


def _kubectl(cluster: LocalCluster, *arguments: str, stdin: str = "") -> str:
    return _output(str(binary("kubectl")), f"--kubeconfig={cluster.kubeconfig}", *arguments, stdin=stdin)


def _output(*command: str, stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout
