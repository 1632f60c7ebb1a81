"""The chart, rendered by the real helm: golden output, a strict schema, documented values, least permissions."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from modelfleet_operator.settings import Settings, load_settings

from tests_helm.rendering import (
    CHART,
    FULL_VALUES,
    GOLDEN,
    ROOT,
    SCENARIOS,
    HelmError,
    documented_values,
    golden_text,
    helm,
    one,
    render,
    table_in_guide,
    values_table,
)


def leaves(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """The paths that values.schema.json allows, down to where anything goes."""
    for name, child in schema["properties"].items():
        here = f"{path}.{name}".removeprefix(".")
        if "properties" in child:
            yield from leaves(child, here)
        else:
            yield here


def test_helm_lint_is_content_even_when_strict() -> None:
    assert "1 chart(s) linted, 0 chart(s) failed" in helm("lint", "--strict", "--kube-version=1.34.0", str(CHART))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_rendered_chart_is_the_golden_one(scenario: str) -> None:
    assert golden_text(scenario) == (GOLDEN / f"{scenario}.yaml").read_text(encoding="utf-8")


def test_the_full_values_change_every_value_that_can_change() -> None:
    full = yaml.safe_load(FULL_VALUES.read_text(encoding="utf-8"))
    unchanged = []
    for value in documented_values():
        node = full
        for key in value.path.split("."):
            node = node[key]
        if node == value.default:
            unchanged.append(value.path)
    # Two replicas need the election, and the golden file needs the CRD.
    assert unchanged == ["leaderElection.enabled", "crds.install"]


@pytest.mark.parametrize(
    ("setting", "refusal"),
    [
        ("replica=1", "replica"),
        ("image.tagg=1", "tagg"),
        ("image.tag=", None),
        ("engine.gpuimage=x", "gpuimage"),
        ("leaderElection.enable=true", "enable"),
        ("leaderElection.enabled=maybe", "leaderElection"),
        ("crds.delete=true", "delete"),
        ("resources.claims=1", "claims"),
        ("replicas=two", "replicas"),
        ("replicas=-1", "replicas"),
        ("replicas=6", "replicas"),
        ("workers=0", "workers"),
        ("workers=257", "workers"),
        ("logLevel=verbose", "logLevel"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("engine.pullPolicy=Sometimes", "pullPolicy"),
        ("image.repository=", "repository"),
        ("imagePullSecrets[0].nam=x", "nam"),
        ("podAnnotations.a=1", "podAnnotations"),
        ("gateway.enable=true", "enable"),
        ("gateway.enabled=maybe", "enabled"),
        ("gateway.replicas=0", "replicas"),
        ("gateway.anonymous=maybe", "anonymous"),
        ("gateway.drainTimeoutSeconds=-1", "drainTimeoutSeconds"),
        ("gateway.resources.claims=1", "claims"),
    ],
)
def test_a_typo_or_an_impossible_value_fails_and_is_named(setting: str, refusal: str | None) -> None:
    if refusal is None:
        render("--set", setting)
        return
    with pytest.raises(HelmError, match="values don't meet the specifications of the schema") as refused:
        render("--set", setting)
    assert refusal in str(refused.value)


def test_two_replicas_without_leader_election_are_refused() -> None:
    with pytest.raises(HelmError, match=r"replicas above 1 need leaderElection\.enabled=true"):
        render("--set=replicas=2,leaderElection.enabled=false")


def test_without_leader_election_the_old_operator_ends_before_the_new_one_starts() -> None:
    deployment = one(render("--set=leaderElection.enabled=false"), "Deployment")
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


def test_every_value_has_a_comment_and_stands_in_the_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    documented = {value.path for value in documented_values()}
    opened = {re.sub(r"(^|\.)resources\..*", r"\1resources", path) for path in documented}
    assert opened == set(leaves(schema)) - {"global"}


def test_the_values_in_the_guide_are_the_defaults() -> None:
    assert table_in_guide() == values_table()


def test_every_value_is_used_by_a_template() -> None:
    templates = "".join(path.read_text(encoding="utf-8") for path in sorted((CHART / "templates").rglob("*.*")))
    used = set(re.findall(r"\.Values\.([\w.]+)", templates))
    unused = [value.path for value in documented_values() if not any(value.path.startswith(name) for name in used)]
    assert unused == []


def test_chart_images_and_package_have_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert chart["version"] == chart["appVersion"] == project["version"]


def test_the_environment_is_what_the_operator_reads_and_the_defaults_agree() -> None:
    container = one(render(), "Deployment")["spec"]["template"]["spec"]["containers"][0]
    environment = {item["name"]: item.get("value", "from-the-pod") for item in container["env"]}

    assert {f"MODELFLEET_{name.upper()}" for name in Settings.model_fields} == set(environment)
    assert load_settings(environment) == Settings(
        engine_image="modelfleet/engine-cpu:0.1.0",
        engine_gpu_image=None,
        system_namespace="from-the-pod",
        pod_name="from-the-pod",
    )


def crds(*arguments: str) -> dict[str, dict[str, Any]]:
    """The rendered CRDs by name."""
    kind = "CustomResourceDefinition"
    return {item["metadata"]["name"]: item for item in render(*arguments) if item["kind"] == kind}


def test_the_charts_crds_are_the_generated_ones() -> None:
    files = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / "crds").glob("modelfleet.dev_*.yaml")]
    generated = {item["metadata"]["name"]: item["spec"] for item in files}
    # Tenants come when the gateway reads them.
    assert set(generated) == {"llmdeployments.modelfleet.dev", "modelroutes.modelfleet.dev"}
    assert {name: item["spec"] for name, item in crds().items()} == generated


def test_the_crds_are_kept_unless_asked_otherwise_and_can_be_left_out() -> None:
    for item in crds().values():
        assert item["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    for item in crds("--set=crds.keep=false").values():
        assert "annotations" not in item["metadata"]
    assert crds("--set=crds.install=false") == {}


def test_a_release_of_another_name_stands_beside_it() -> None:
    ours = {(item["kind"], item["metadata"]["name"]) for item in render("--set=crds.install=false")}
    theirs = {(item["kind"], item["metadata"]["name"]) for item in render("--set=crds.install=false", release="b")}
    assert ours & theirs == set()
    assert ("Deployment", "b-modelfleet-operator") in theirs
