"""The rendered chart before a real API server: strict validation, restricted pod security, real permissions."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Mapping
from typing import Any

import pytest

from e2e.cluster.apiserver import ApiServer
from e2e.cluster.toolchain import binary
from tests_helm.rendering import SCENARIOS, one, render

pytestmark = pytest.mark.apiserver

CRD = "crd/llmdeployments.modelfleet.dev"
OPERATOR = "system:serviceaccount:modelfleet-system:modelfleet-operator"


def kubectl(server: ApiServer, *arguments: str, given: Mapping[str, Any] | None = None) -> str:
    """kubectl's output, both streams."""
    done = subprocess.run(
        [str(binary("kubectl")), f"--kubeconfig={server.kubeconfig_path}", *arguments],
        input=None if given is None else json.dumps(given),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def namespace(server: ApiServer, name: str, **labels: str) -> str:
    """A namespace, created where it is absent."""
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    kubectl(server, "apply", "--server-side", "-f", "-", given=manifest)
    return name


@pytest.fixture(scope="module")
def authorizer(api_server: ApiServer) -> ApiServer:
    """The API server with the chart's roles and the CRD."""
    namespace(api_server, "modelfleet-system")
    manifests = [item for item in render() if "Role" in item["kind"] or item["kind"] == "CustomResourceDefinition"]
    items = {"apiVersion": "v1", "kind": "List", "items": manifests}
    kubectl(api_server, "apply", "--server-side", "--force-conflicts", "-f", "-", given=items)
    kubectl(api_server, "wait", "--for=condition=Established", "--timeout=20s", CRD)
    return api_server


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_api_server_takes_every_object_under_strict_validation(scenario: str, api_server: ApiServer) -> None:
    namespace(api_server, "modelfleet-system")
    manifests = render(*SCENARIOS[scenario])
    objects = {"apiVersion": "v1", "kind": "List", "items": manifests}

    said = kubectl(
        api_server, "apply", "--server-side", "--validate=strict", "--dry-run=server", "-f", "-", given=objects
    )

    assert len(said.splitlines()) == len(manifests), said
    assert all(line.endswith("serverside-applied (server dry run)") for line in said.splitlines()), said


def test_restricted_pod_security_admits_the_operators_pod(api_server: ApiServer) -> None:
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    place = namespace(api_server, f"restricted-{uuid.uuid4().hex[:8]}", **restricted)
    template = one(render("--set=crds.install=false"), "Deployment")["spec"]["template"]
    metadata = {"name": "operator", "namespace": place, "labels": template["metadata"]["labels"]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    rooted = {**pod, "spec": {**template["spec"], "securityContext": {"runAsUser": 0}}}

    assert kubectl(api_server, "create", "--dry-run=server", "-f", "-", given=pod) == (
        "pod/operator created (server dry run)"
    )
    refused = kubectl(api_server, "create", "--dry-run=server", "-f", "-", given=rooted)
    assert 'violates PodSecurity "restricted' in refused


@pytest.mark.parametrize(
    ("verb", "resource", "where", "allowed"),
    [
        ("patch", "llmdeployments.modelfleet.dev/status", "anywhere", True),
        ("patch", "llmdeployments.modelfleet.dev", "anywhere", False),
        ("create", "deployments.apps", "anywhere", True),
        ("patch", "pods/status", "anywhere", True),
        ("create", "pods", "anywhere", False),
        ("get", "secrets", "anywhere", False),
        ("get", "secrets", "modelfleet-system", False),
        ("create", "leases.coordination.k8s.io", "modelfleet-system", True),
        ("update", "leases.coordination.k8s.io/modelfleet-operator", "modelfleet-system", True),
        ("update", "leases.coordination.k8s.io/another", "modelfleet-system", False),
        ("create", "leases.coordination.k8s.io", "kube-system", False),
    ],
)
def test_the_authorizer_lets_the_operator_do_its_work_and_no_more(
    verb: str, resource: str, where: str, allowed: bool, authorizer: ApiServer
) -> None:
    kind, _, tail = resource.partition("/")
    # kubectl reads a tail as the object's name; a subresource has its own flag.
    what = [kind, f"--subresource={tail}"] if tail == "status" else [resource]

    said = kubectl(authorizer, "auth", "can-i", verb, *what, f"--as={OPERATOR}", f"--namespace={where}")

    assert said.splitlines()[-1] == ("yes" if allowed else "no"), said
