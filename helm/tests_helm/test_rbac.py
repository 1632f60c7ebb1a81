"""The permissions of operator and gateway: no wildcard, and documented line by line."""

from __future__ import annotations

import re
from typing import Any

from tests_helm.rendering import ROOT, WITH_GATEWAY, one, render

GUIDE = ROOT / "docs" / "guides" / "rbac.md"
OPERATOR = "modelfleet-operator"
GATEWAY = "modelfleet-gateway"
Right = tuple[str, str, str, str]


def rendered_rights(kind: str, *, name: str = OPERATOR) -> set[Right]:
    """(group, resource, name, verb) of every rule of a role; no name: any."""
    rules: list[dict[str, Any]] = one(render(WITH_GATEWAY), kind, name=name)["rules"]
    return {
        (group, resource, name, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
        for verb in rule["verbs"]
    }


def documented_rights(heading: str) -> set[Right]:
    """The same, read from the guide's table under `heading`."""
    section = GUIDE.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    rights: set[Right] = set()
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("| ") or cells[0] == "API group":
            continue
        group = "" if cells[0] == "core" else cells[0].strip("`")
        for resource, _, name in re.findall(r"`([\w./]+)`( \(`([\w-]+)`\))?", cells[1]):
            rights |= {(group, resource, name, verb) for verb in re.findall(r"`(\w+)`", cells[2])}
        assert cells[3], f"{cells[1]} is not explained"
    return rights


def test_no_right_is_a_wildcard() -> None:
    rights = rendered_rights("ClusterRole") | rendered_rights("Role") | rendered_rights("ClusterRole", name=GATEWAY)
    assert [right for right in rights if "*" in right] == []


def test_secrets_exec_and_nodes_are_out_of_reach() -> None:
    reachable = {resource for _, resource, _, _ in rendered_rights("ClusterRole") | rendered_rights("Role")}
    assert reachable & {"secrets", "pods/exec", "pods/log", "nodes", "namespaces", "roles", "clusterroles"} == set()


def test_a_spec_cannot_be_changed_by_the_operator() -> None:
    verbs = {verb for _, resource, _, verb in rendered_rights("ClusterRole") if resource == "llmdeployments"}
    assert verbs == {"get", "list", "watch"}


def test_the_guide_explains_exactly_the_rights_of_the_cluster_role() -> None:
    assert documented_rights("ClusterRole") == rendered_rights("ClusterRole")


def test_the_gateway_reads_and_never_writes() -> None:
    assert {verb for _, _, _, verb in rendered_rights("ClusterRole", name=GATEWAY)} == {"list", "watch"}


def test_the_guide_explains_exactly_the_rights_of_the_gateway() -> None:
    assert documented_rights("ClusterRole of the gateway") == rendered_rights("ClusterRole", name=GATEWAY)


def test_the_guide_explains_exactly_the_rights_of_the_role() -> None:
    assert documented_rights("Role, in the operator's namespace") == rendered_rights("Role")
