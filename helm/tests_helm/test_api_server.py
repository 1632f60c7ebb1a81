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
from tests_helm.rendering import CHART, SCENARIOS, WITH_GATEWAY, helm, one, render

pytestmark = pytest.mark.apiserver

CRD = "crd/llmdeployments.modelfleet.dev"
OPERATOR = "system:serviceaccount:modelfleet-system:modelfleet-operator"
GATEWAY = "system:serviceaccount:modelfleet-system:modelfleet-gateway"


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
    kinds = {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}
    manifests = [item for item in render(WITH_GATEWAY) if item["kind"] in kinds]
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


@pytest.mark.parametrize("part", ["operator", "gateway"])
def test_restricted_pod_security_admits_the_pods_of_operator_and_gateway(part: str, api_server: ApiServer) -> None:
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    place = namespace(api_server, f"restricted-{uuid.uuid4().hex[:8]}", **restricted)
    template = one(render(WITH_GATEWAY), "Deployment", name=f"modelfleet-{part}")["spec"]["template"]
    metadata = {"name": part, "namespace": place, "labels": template["metadata"]["labels"]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    rooted = {**pod, "spec": {**template["spec"], "securityContext": {"runAsUser": 0}}}

    assert kubectl(api_server, "create", "--dry-run=server", "-f", "-", given=pod) == (
        f"pod/{part} created (server dry run)"
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
    assert can_i(authorizer, OPERATOR, verb, resource, where) is allowed


@pytest.mark.parametrize(
    ("verb", "resource", "where", "allowed"),
    [
        ("list", "llmdeployments.modelfleet.dev", "anywhere", True),
        ("watch", "llmdeployments.modelfleet.dev", "anywhere", True),
        ("list", "modelroutes.modelfleet.dev", "anywhere", True),
        ("list", "pods", "anywhere", True),
        ("watch", "pods", "anywhere", True),
        ("patch", "llmdeployments.modelfleet.dev/status", "anywhere", False),
        ("patch", "pods/status", "anywhere", False),
        ("delete", "pods", "anywhere", False),
        ("get", "secrets", "modelfleet-system", False),
        ("list", "configmaps", "modelfleet-system", False),
    ],
)
def test_the_authorizer_lets_the_gateway_read_models_and_pods_and_nothing_else(
    verb: str, resource: str, where: str, allowed: bool, authorizer: ApiServer
) -> None:
    assert can_i(authorizer, GATEWAY, verb, resource, where) is allowed


def can_i(server: ApiServer, who: str, verb: str, resource: str, where: str) -> bool:
    """kubectl's yes or no."""
    kind, _, tail = resource.partition("/")
    # kubectl reads a tail as the object's name; a subresource has its own flag.
    what = [kind, f"--subresource={tail}"] if tail == "status" else [resource]

    said = kubectl(server, "auth", "can-i", verb, *what, f"--as={who}", f"--namespace={where}")
    assert said.splitlines()[-1] in ("yes", "no"), said
    return said.splitlines()[-1] == "yes"


def test_the_notes_name_the_fleets_url_and_say_when_nobody_may_use_it(api_server: ApiServer) -> None:
    def notes(*arguments: str) -> str:
        # Even a dry run asks the server for its version, and whether something there has another owner (the CRDs do).
        asked = ("--dry-run=client", f"--kubeconfig={api_server.kubeconfig_path}", "--set=crds.install=false")
        said = helm("install", "b", str(CHART), "--namespace=fleet", *asked, *arguments)
        return said.split("NOTES:")[1]

    url, refusing = "  http://modelfleet.fleet/v1\n", "the gateway refuses every request"
    assert url in notes(WITH_GATEWAY)
    assert refusing in notes(WITH_GATEWAY)
    assert refusing not in notes(WITH_GATEWAY, "--set=gateway.anonymous=true")
    assert url not in notes()
