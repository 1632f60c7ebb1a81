"""What the API server makes of an accepted ModelRoute and Tenant: defaults, columns, names."""

from __future__ import annotations

import copy
import subprocess
import uuid
from typing import Any

import pytest
from modelfleet_api.crd_kinds import KINDS, MODEL_ROUTE, TENANT, Kind
from modelfleet_api.modelroute import ModelRouteSpec
from modelfleet_api.tenant import TenantSpec

from e2e.cluster.apiserver import ApiServer
from e2e.cluster.toolchain import binary
from tests_api import samples_route, samples_tenant
from tests_api.api import request
from tests_api.conftest import CRDS
from tests_api.kinds import collection_of

pytestmark = pytest.mark.apiserver


def create(server: ApiServer, kind: Kind, manifest: dict[str, Any]) -> dict[str, Any]:
    """A stored object with a name of its own."""
    manifest = copy.deepcopy(manifest)
    manifest["metadata"]["name"] = f"k-{uuid.uuid4().hex[:8]}"
    answer = request(server, "POST", f"{collection_of(kind)}?fieldValidation=Strict", body=manifest)
    assert answer.code == 201, answer.message
    return answer.body


def columns(server: ApiServer, resource: str, name: str) -> dict[str, str]:
    """What `kubectl get` shows of an object, by column."""
    command = [str(binary("kubectl")), f"--kubeconfig={server.kubeconfig_path}", "get", resource, name]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return dict(zip(shown[0].split(), shown[1].split(), strict=True))


def test_a_stored_tenant_has_its_defaults_and_no_limits(crd_server: ApiServer) -> None:
    stored = create(crd_server, TENANT, samples_tenant.BASE)

    assert stored["spec"] == {"priority": 0, "weight": 1}
    assert TenantSpec.model_validate(stored["spec"]) == TenantSpec()


def test_a_stored_route_has_the_default_weight_in_each_target(crd_server: ApiServer) -> None:
    stored = create(crd_server, MODEL_ROUTE, samples_route.BASE)

    assert stored["spec"] == {"aliases": ["chat"], "targets": [{"model": "llama", "weight": 1}]}
    assert ModelRouteSpec.model_validate(stored["spec"]) == ModelRouteSpec.model_validate(samples_route.BASE["spec"])


def test_kubectl_shows_what_a_tenant_may_use_and_the_aliases_of_a_route(crd_server: ApiServer) -> None:
    limited = {**samples_tenant.BASE, "spec": {"requestsPerMinute": 60, "tokensPerMinute": 9000, "priority": 5}}
    tenant = create(crd_server, TENANT, limited)["metadata"]["name"]
    route = create(crd_server, MODEL_ROUTE, samples_route.BASE)["metadata"]["name"]

    shown = columns(crd_server, "llmtenant", tenant)
    assert {**shown, "AGE": ""} == {
        "NAME": tenant,
        "REQUESTS": "60",
        "TOKENS": "9000",
        "PRIORITY": "5",
        "WEIGHT": "1",
        "AGE": "",
    }
    assert columns(crd_server, "llmroute", route)["ALIASES"] == '["chat"]'


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_each_definition_is_structural_and_its_names_are_accepted(kind: Kind, crd_server: ApiServer) -> None:
    status = request(crd_server, "GET", f"{CRDS}/{kind.definition_name}").body["status"]

    conditions = {item["type"]: item["status"] for item in status["conditions"]}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}
    assert status["acceptedNames"]["shortNames"] == list(kind.short_names)
