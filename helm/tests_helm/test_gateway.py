"""The gateway of the chart: off unless asked for, never fewer replicas than asked for, told what its program reads."""

from __future__ import annotations

from typing import Any

from modelfleet_gateway.kube_settings import KubeSettings, config_of_environment

from tests_helm.rendering import WITH_GATEWAY, Manifest, one, render

NAME = "modelfleet-gateway"
COMPONENT = "app.kubernetes.io/component"


def gateway_objects(*arguments: str) -> list[Manifest]:
    """What the chart renders with the gateway and not without."""
    without = {(item["kind"], item["metadata"]["name"]) for item in render(*arguments)}
    return [
        item for item in render(WITH_GATEWAY, *arguments) if (item["kind"], item["metadata"]["name"]) not in without
    ]


def pod_spec(*arguments: str) -> dict[str, Any]:
    """The gateway's pod."""
    spec: dict[str, Any] = one(render(WITH_GATEWAY, *arguments), "Deployment", name=NAME)["spec"]["template"]["spec"]
    return spec


def test_without_being_asked_for_there_is_no_gateway() -> None:
    assert [item for item in render() if item["metadata"].get("labels", {}).get(COMPONENT) == "gateway"] == []


def test_the_gateway_is_seven_objects_that_carry_its_component() -> None:
    found = gateway_objects()
    assert {(item["kind"], item["metadata"]["name"]) for item in found} == {
        ("Deployment", NAME),
        ("ServiceAccount", NAME),
        ("ClusterRole", NAME),
        ("ClusterRoleBinding", NAME),
        ("PodDisruptionBudget", NAME),
        ("Service", "modelfleet"),
        ("Service", "modelfleet-gateway-internal"),
    }
    assert {item["metadata"]["labels"][COMPONENT] for item in found} == {"gateway"}


def test_operator_and_gateway_select_their_own_pods_only() -> None:
    rendered = render(WITH_GATEWAY)
    pods = {
        name: one(rendered, "Deployment", name=name)["spec"]["template"]["metadata"]["labels"]
        for name in (NAME, "modelfleet-operator")
    }

    def selected(selector: dict[str, str]) -> set[str]:
        return {name for name, labels in pods.items() if selector.items() <= labels.items()}

    services = {item["metadata"]["name"]: item["spec"]["selector"] for item in rendered if item["kind"] == "Service"}
    assert {name: selected(selector) for name, selector in services.items()} == {
        "modelfleet": {NAME},
        "modelfleet-gateway-internal": {NAME},
        "modelfleet-operator-metrics": {"modelfleet-operator"},
    }
    for name in pods:
        selector = one(rendered, "Deployment", name=name)["spec"]["selector"]["matchLabels"]
        assert selected(selector) == {name}


def test_the_fleets_url_is_the_same_whatever_the_release_is_called() -> None:
    service = one(render(WITH_GATEWAY, release="b"), "Service", name="modelfleet")
    assert service["metadata"]["namespace"] == "modelfleet-system"
    assert service["spec"]["ports"] == [{"name": "http", "port": 80, "targetPort": "http"}]


def test_a_rollout_has_a_new_gateway_ready_before_an_old_one_goes() -> None:
    spec = one(render(WITH_GATEWAY), "Deployment", name=NAME)["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


def test_one_replica_has_no_disruption_budget_that_would_block_every_drain() -> None:
    kinds = {item["kind"] for item in gateway_objects("--set=gateway.replicas=1")}
    assert "PodDisruptionBudget" not in kinds


def test_the_pod_may_take_as_long_as_its_drain() -> None:
    assert pod_spec()["terminationGracePeriodSeconds"] == 320
    assert pod_spec("--set=gateway.drainTimeoutSeconds=60")["terminationGracePeriodSeconds"] == 80


def test_the_environment_is_what_the_gateway_reads_and_the_defaults_agree() -> None:
    (container,) = pod_spec()["containers"]
    environment = {item["name"]: item["value"] for item in container["env"]}

    # The key comes with the operator's half: until then the engines are open.
    fields = {name for name in KubeSettings.model_fields if name != "internal_key_file"}
    assert {f"MODELFLEET_GATEWAY_{name.upper()}" for name in fields} == set(environment)
    config = config_of_environment(environment)
    assert config == config_of_environment({})
    ports = {port["name"]: f":{port['containerPort']}" for port in container["ports"]}
    assert ports == {"http": config.listen, "internal": config.internal.listen}
