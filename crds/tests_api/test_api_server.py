"""What the API server makes of an accepted manifest: defaults, /scale, /status, printer columns."""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest
from modelfleet_api import names
from modelfleet_api.generate import ROOT
from modelfleet_api.llmdeployment import LLMDeploymentSpec

from e2e.cluster.apiserver import ApiServer
from e2e.cluster.toolchain import binary
from tests_api.api import request
from tests_api.conftest import CRDS
from tests_api.samples import changed

pytestmark = pytest.mark.apiserver

COLLECTION = f"/apis/{names.API_VERSION}/namespaces/default/{names.PLURAL}"
MERGE = "application/merge-patch+json"
STATUS = {
    "observedGeneration": 1,
    "desiredReplicas": 2,
    "replicas": 2,
    "readyReplicas": 1,
    "selector": "modelfleet.dev/model=m",
    "url": "http://m.default/v1",
    "conditions": [
        {
            "type": "Ready",
            "status": "False",
            "reason": "ImagePullBackOff",
            "message": "no such image",
            "observedGeneration": 1,
            "lastTransitionTime": "2026-01-31T08:00:00Z",
        }
    ],
}


def create(server: ApiServer, path: str = "spec.replicas", value: Any = 2) -> dict[str, Any]:
    """A stored LLMDeployment with a name of its own."""
    manifest = changed(path, value)
    manifest["metadata"]["name"] = f"m-{uuid.uuid4().hex[:8]}"
    answer = request(server, "POST", f"{COLLECTION}?fieldValidation=Strict", body=manifest)
    assert answer.code == 201, answer.message
    return answer.body


def path_of(model: dict[str, Any], subresource: str = "") -> str:
    return f"{COLLECTION}/{model['metadata']['name']}{subresource}"


def kubectl(server: ApiServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(binary("kubectl")), f"--kubeconfig={server.kubeconfig_path}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_defaults_appear_in_what_is_stored_and_replicas_has_none(crd_server: ApiServer) -> None:
    stored = create(crd_server, "spec.placement", {"gpu": {}})

    assert stored["spec"] == {
        "model": {"source": "pvc://models/m"},
        "engine": {"maxModelLen": "auto", "dtype": "auto", "prefixCaching": True},
        "parallelism": {"tensor": 1},
        "placement": {"gpu": {"resourceName": "nvidia.com/gpu"}},
        "rollout": {"drainTimeoutSeconds": 300, "progressDeadlineSeconds": 600},
        "suspend": False,
    }
    parsed = LLMDeploymentSpec.model_validate({"model": {"source": "pvc://models/m"}, "placement": {"gpu": {}}})
    assert LLMDeploymentSpec.model_validate(stored["spec"]) == parsed


def test_what_is_opaque_is_kept_to_the_letter(crd_server: ApiServer) -> None:
    template = {"spec": {"containers": [{"name": "engine", "x": [1, {"y": "z"}]}]}, "empty": {}}

    assert create(crd_server, "spec.podTemplate", template)["spec"]["podTemplate"] == template


def test_a_write_of_the_status_leaves_the_spec_and_the_generation_alone(crd_server: ApiServer) -> None:
    model = create(crd_server)

    answer = request(
        crd_server, "PATCH", path_of(model, "/status"), body={"spec": {"replicas": 9}, "status": STATUS}, media=MERGE
    )

    assert answer.code == 200, answer.message
    assert answer.body["status"] == STATUS
    assert answer.body["spec"]["replicas"] == 2
    assert answer.body["metadata"]["generation"] == 1


def test_a_write_of_the_object_leaves_the_status_alone(crd_server: ApiServer) -> None:
    model = create(crd_server)

    answer = request(crd_server, "PATCH", path_of(model), body={"status": STATUS}, media=MERGE)

    assert answer.code == 200
    assert "status" not in answer.body


def test_two_conditions_of_one_type_are_refused(crd_server: ApiServer) -> None:
    model = create(crd_server)
    status = {"conditions": STATUS["conditions"] * 2}  # type: ignore[operator]

    answer = request(crd_server, "PATCH", path_of(model, "/status"), body={"status": status}, media=MERGE)

    assert answer.code == 422
    assert "Duplicate value" in answer.message


def test_scale_shows_and_changes_the_replicas_and_names_the_selector(crd_server: ApiServer) -> None:
    model = create(crd_server)
    request(crd_server, "PATCH", path_of(model, "/status"), body={"status": STATUS}, media=MERGE)

    before = request(crd_server, "GET", path_of(model, "/scale"))
    scaled = kubectl(crd_server, "scale", f"llm/{model['metadata']['name']}", "--replicas=3")

    assert before.body["spec"] == {"replicas": 2}
    assert before.body["status"] == {"replicas": 2, "selector": "modelfleet.dev/model=m"}
    assert scaled.returncode == 0, scaled.stderr
    assert request(crd_server, "GET", path_of(model)).body["spec"]["replicas"] == 3


def test_without_replicas_kubectl_scale_works_though_nobody_can_read_the_scale(crd_server: ApiServer) -> None:
    """No schema default on purpose: an autoscaler decides where `replicas` is absent. An HPA needs it present."""
    model = create(crd_server, "spec.suspend", False)
    assert "replicas" not in model["spec"]

    read = request(crd_server, "GET", path_of(model, "/scale"))
    scaled = kubectl(crd_server, "scale", f"llm/{model['metadata']['name']}", "--replicas=3")

    assert read.code == 500
    assert "spec.replicas" in read.message
    assert scaled.returncode == 0, scaled.stderr
    assert request(crd_server, "GET", path_of(model, "/scale")).body["spec"] == {"replicas": 3}


def test_kubectl_shows_the_columns_a_person_looks_for(crd_server: ApiServer) -> None:
    model = create(crd_server)
    request(crd_server, "PATCH", path_of(model, "/status"), body={"status": STATUS}, media=MERGE)

    shown = kubectl(crd_server, "get", "llm", model["metadata"]["name"]).stdout.splitlines()

    assert shown[0].split() == ["NAME", "MODEL", "DESIRED", "READY", "REASON", "URL", "AGE"]
    assert shown[1].split()[1:-1] == ["pvc://models/m", "2", "1", "ImagePullBackOff", "http://m.default/v1"]


def test_the_crd_is_structural_and_its_names_are_accepted(crd_server: ApiServer) -> None:
    status = request(crd_server, "GET", f"{CRDS}/{names.PLURAL}.{names.GROUP}").body["status"]

    conditions = {item["type"]: item["status"] for item in status["conditions"]}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}
    assert status["acceptedNames"]["shortNames"] == ["llm"]


def test_kubectl_get_all_does_not_name_models_but_the_category_does(crd_server: ApiServer) -> None:
    """`kubectl delete all --all` must not take models with it."""
    model = create(crd_server)

    assert model["metadata"]["name"] not in kubectl(crd_server, "get", "all").stdout
    assert model["metadata"]["name"] in kubectl(crd_server, "get", "modelfleet").stdout


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_kubectl_applies_each_example_under_strict_validation(example: Path, crd_server: ApiServer) -> None:
    applied = kubectl(crd_server, "apply", "--server-side", "--validate=strict", "--dry-run=server", "-f", str(example))

    assert applied.returncode == 0, applied.stderr
