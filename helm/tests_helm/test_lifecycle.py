"""install, upgrade, uninstall and install again with the real helm on a real API server (no controllers: no pods).

The same with a running operator is in e2e/test_helm.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.cluster.apiserver import ApiServer
from e2e.cluster.toolchain import binary
from tests_helm.rendering import CHART, ROOT, helm

pytestmark = pytest.mark.apiserver

CRD = "crd/llmdeployments.modelfleet.dev"
ROUTE_CRD = "crd/modelroutes.modelfleet.dev"
RELEASE = ("modelfleet", "--namespace=modelfleet-system")


@pytest.fixture(scope="module")
def own_server() -> Iterator[ApiServer]:
    """A server of its own: CRDs are cluster-wide, and helm refuses one that it did not install."""
    with ApiServer() as server:
        yield server


@pytest.fixture
def server(own_server: ApiServer) -> Iterator[ApiServer]:
    """That server without the release and the CRDs."""
    yield own_server
    release(own_server, "uninstall", "--ignore-not-found")
    kubectl(own_server, "delete", "crd", "--all", "--timeout=20s")


def kubectl(server: ApiServer, *arguments: str) -> str:
    """kubectl's standard output; raises CalledProcessError."""
    command = [str(binary("kubectl")), f"--kubeconfig={server.kubeconfig_path}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def release(server: ApiServer, verb: str, *arguments: str) -> str:
    """A helm command about the release."""
    return helm(verb, *RELEASE, *arguments, f"--kubeconfig={server.kubeconfig_path}")


def crd(server: ApiServer) -> dict[str, Any]:
    """The CRD as stored."""
    stored: dict[str, Any] = json.loads(kubectl(server, "get", CRD, "-o", "json"))
    return stored


def installed(server: ApiServer) -> str:
    """What the chart's label finds, without the CRDs."""
    kinds = "deploy,sa,svc,pdb,role,rolebinding,clusterrole,clusterrolebinding"
    return kubectl(server, "get", kinds, "-A", "-l", "app.kubernetes.io/name=modelfleet", "-o", "name")


def next_version(directory: Path) -> Path:
    """A copy of the chart whose CRD has one column more."""
    copy = directory / "modelfleet"
    shutil.copytree(CHART, copy)
    template = copy / "templates" / "crds" / "llmdeployments.yaml"
    column = "    - jsonPath: .spec.image\n      name: Image\n      type: string\n"
    text = template.read_text(encoding="utf-8")
    template.write_text(
        text.replace("  - additionalPrinterColumns:\n", f"  - additionalPrinterColumns:\n{column}"), encoding="utf-8"
    )
    return copy


def test_the_crd_is_upgraded_with_the_chart_and_models_outlive_the_release(server: ApiServer, tmp_path: Path) -> None:
    notes = release(server, "install", str(CHART), "--create-namespace")
    assert "kubectl -n modelfleet-system rollout status deployment/modelfleet-operator" in notes
    assert "`helm uninstall` leaves the CRDs, all models and all routes" in notes
    kubectl(server, "wait", "--for=condition=Established", "--timeout=20s", CRD, ROUTE_CRD)
    kubectl(server, "apply", "-f", str(ROOT / "examples" / "smollm2.yaml"))
    before = json.loads(kubectl(server, "get", "llm", "smollm2", "-o", "json"))

    release(server, "upgrade", str(next_version(tmp_path)), "--set=replicas=2")
    columns = crd(server)["spec"]["versions"][0]["additionalPrinterColumns"]
    assert "Image" in {column["name"] for column in columns}
    assert "poddisruptionbudget.policy/modelfleet-operator" in installed(server)

    said = release(server, "uninstall")
    assert "[CustomResourceDefinition] llmdeployments.modelfleet.dev" in said
    assert installed(server) == ""
    assert json.loads(kubectl(server, "get", "llm", "smollm2", "-o", "json")) == before

    release(server, "install", str(CHART))
    assert json.loads(kubectl(server, "get", "llm", "smollm2", "-o", "json")) == before
    columns = crd(server)["spec"]["versions"][0]["additionalPrinterColumns"]
    assert "Image" not in {column["name"] for column in columns}


def test_without_keep_the_crds_go_with_the_release_and_the_notes_warn_of_it(server: ApiServer) -> None:
    notes = release(server, "install", str(CHART), "--create-namespace", "--set=crds.keep=false")
    assert "WARNING: crds.keep is false" in notes

    release(server, "uninstall")

    kubectl(server, "wait", "--for=delete", "--timeout=20s", CRD, ROUTE_CRD)
    assert kubectl(server, "get", "crd", "-o", "name") == ""


def test_what_the_notes_delete_is_every_crd_that_the_release_left(server: ApiServer) -> None:
    notes = release(server, "install", str(CHART), "--create-namespace")
    (command,) = [line for line in notes.splitlines() if line.startswith("  kubectl delete crd ")]
    release(server, "uninstall")

    kubectl(server, *command.split()[1:], "--timeout=20s")

    assert kubectl(server, "get", "crd", "-o", "name") == ""


def test_without_the_crds_the_notes_say_what_to_apply(server: ApiServer) -> None:
    notes = release(server, "install", str(CHART), "--create-namespace", "--set=crds.install=false")

    assert "\n  kubectl apply --server-side -f crds/\n" in notes
    assert kubectl(server, "get", "crd", "-o", "name") == ""
    kubectl(server, "apply", "--server-side", "-f", str(ROOT / "crds"))
    kubectl(server, "wait", "--for=condition=Established", "--timeout=20s", CRD, ROUTE_CRD)
    assert len(kubectl(server, "get", "crd", "-o", "name").split()) == 2


def test_the_model_in_the_notes_is_one_that_the_api_server_accepts(server: ApiServer, tmp_path: Path) -> None:
    notes = release(server, "install", str(CHART), "--create-namespace")
    manifest = tmp_path / "model.yaml"
    text = notes.split("<<'EOF'\n")[1].split("  EOF")[0]
    manifest.write_text(yaml.safe_dump(yaml.safe_load(text)), encoding="utf-8")
    kubectl(server, "wait", "--for=condition=Established", "--timeout=20s", CRD)

    kubectl(server, "apply", "--validate=strict", "-f", str(manifest))
