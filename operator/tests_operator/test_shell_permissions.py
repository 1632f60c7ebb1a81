"""The operator with the chart's permissions and a service account's token, and nothing more."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml
from modelfleet_kube.resources import SERVICE_ACCOUNT, ResourceKind
from modelfleet_kube.transport import Exchange

from e2e.cluster.apiserver import ApiServer
from tests_operator.process import OperatorProcess
from tests_operator.world import World, until

pytestmark = pytest.mark.apiserver

TEMPLATES = Path(__file__).parents[2] / "helm" / "modelfleet" / "templates"
RBAC = "rbac.authorization.k8s.io"


def chart_rules(template: str) -> list[dict[str, Any]]:
    """The rules of the one role in a template: that part of it has no placeholders."""
    role = (TEMPLATES / template).read_text(encoding="utf-8").split("\n---")[0]
    rules: list[dict[str, Any]] = yaml.safe_load(role[role.index("\nrules:") :])["rules"]
    return rules


def rbac_kind(kind: str, *, is_namespaced: bool) -> ResourceKind:
    return ResourceKind(group=RBAC, version="v1", plural=f"{kind.lower()}s", kind=kind, is_namespaced=is_namespaced)


async def grant(world: World, *, role_kind: str, template: str, is_namespaced: bool) -> None:
    """Creates the role and binds it to the service account `op` of the test's namespace."""
    name = f"op-{world.namespace}"
    metadata = {"name": name, "namespace": world.namespace} if is_namespaced else {"name": name}
    role = {"metadata": metadata, "rules": chart_rules(template)}
    await world.client.create(rbac_kind(role_kind, is_namespaced=is_namespaced), role)
    binding = {
        "metadata": metadata,
        "roleRef": {"apiGroup": RBAC, "kind": role_kind, "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": "op", "namespace": world.namespace}],
    }
    await world.client.create(rbac_kind(f"{role_kind}Binding", is_namespaced=is_namespaced), binding)


async def service_account_kubeconfig(world: World, api_server: ApiServer, *, directory: Path) -> Path:
    """A kubeconfig with a token file, as a pod has one."""
    account = {"metadata": {"name": "op", "namespace": world.namespace}}
    await world.client.create(SERVICE_ACCOUNT, account)
    path = f"{SERVICE_ACCOUNT.path(namespace=world.namespace)}/op/token"
    token = await world.client.request(
        Exchange(method="POST", path=path, verb="create", resource="serviceaccounts", body={"spec": {}})
    )
    (directory / "token").write_text(token["status"]["token"], encoding="utf-8")
    authority = base64.b64encode(api_server.ca_path.read_bytes()).decode("ascii")
    document = {
        "current-context": "op",
        "contexts": [{"name": "op", "context": {"cluster": "c", "user": "op"}}],
        "clusters": [{"name": "c", "cluster": {"server": api_server.url, "certificate-authority-data": authority}}],
        "users": [{"name": "op", "user": {"tokenFile": "token"}}],
    }
    kubeconfig = directory / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(document), encoding="utf-8")
    return kubeconfig


async def test_the_charts_permissions_are_enough(api_server: ApiServer, world: World, tmp_path: Path) -> None:
    await grant(world, role_kind="ClusterRole", template="clusterrole.yaml", is_namespaced=False)
    await grant(world, role_kind="Role", template="role.yaml", is_namespaced=True)
    kubeconfig = await service_account_kubeconfig(world, api_server, directory=tmp_path)
    async with OperatorProcess(kubeconfig, directory=tmp_path, system_namespace=world.namespace) as operator:
        await world.apply_model("m")
        await world.wait_children("m")
        await world.make_ready("m")

        async def is_ready() -> bool:
            return (await world.condition("m", "Ready")).get("status") == "True"

        await until(is_ready)
        await world.apply_model("m", engine={"maxNumSeqs": 2})
        await operator.quiet()
        samples = await operator.samples("modelfleet_operator_api_requests_total")
        codes = {dict(labels)["code"] for labels in samples}
        assert "403" not in codes
        assert await operator.samples("modelfleet_operator_event_errors_total") == {(): 0.0}
        refused = [line for line in operator.log() if "orbidden" in line["message"]]
        assert refused == []
