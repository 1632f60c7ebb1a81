"""The API-server-only mode, for real."""

from __future__ import annotations

import json
import ssl
import subprocess
import urllib.request
from pathlib import Path

import pytest

from e2e.cluster.apiserver import ApiServer
from e2e.cluster.fixtures import api_server
from e2e.cluster.toolchain import KUBERNETES_VERSION, binary

__all__ = ["api_server"]

pytestmark = pytest.mark.apiserver


def test_token_and_client_certificate_are_both_an_administrators(api_server: ApiServer) -> None:
    context = ssl.create_default_context(cafile=str(api_server.ca_path))
    request = urllib.request.Request(
        f"{api_server.url}/version", headers={"Authorization": f"Bearer {api_server.token}"}
    )
    with urllib.request.urlopen(request, context=context) as response:
        assert json.load(response)["gitVersion"] == KUBERNETES_VERSION
    context.load_cert_chain(api_server.client_certificate_path, api_server.client_key_path)
    with urllib.request.urlopen(f"{api_server.url}/api/v1/secrets", context=context) as response:
        assert json.load(response)["kind"] == "SecretList"


def test_a_pod_is_stored_although_nothing_runs_it(api_server: ApiServer) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "stored", "namespace": "default"},
        "spec": {"containers": [{"name": "main", "image": "localhost/nothing"}]},
    }
    kubectl = [str(binary("kubectl")), f"--kubeconfig={api_server.kubeconfig_path}"]
    subprocess.run([*kubectl, "create", "-f", "-"], input=json.dumps(pod), text=True, check=True)
    phase = subprocess.run(
        [*kubectl, "get", "pod", "stored", "-o", "jsonpath={.status.phase}"], capture_output=True, check=True
    )
    assert phase.stdout == b"Pending"


def test_closing_leaves_no_process_and_no_file() -> None:
    with ApiServer() as server:
        directory = server.kubeconfig_path.parent
        pids = [json.loads(path.read_text())["pid"] for path in (directory / "pids").glob("*.json")]
        assert len(pids) == 2
    assert not directory.exists()
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
