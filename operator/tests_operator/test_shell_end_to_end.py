"""The operator as a process of its own against a real API server: what users and other controllers would see."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest
from modelfleet_api import names
from modelfleet_kube.errors import NotFoundError
from modelfleet_kube.resources import (
    CONFIG_MAP,
    DEPLOYMENT,
    EVENT,
    LEASE,
    POD,
    POD_DISRUPTION_BUDGET,
    SERVICE,
    ObjectRef,
    ResourceKind,
    Selection,
)
from modelfleet_operator.caches import CHILD_KINDS, LLM_DEPLOYMENT

from e2e.cluster.apiserver import ApiServer
from tests_operator.process import OperatorProcess
from tests_operator.world import NOW, World, until

pytestmark = pytest.mark.apiserver

VALIDATING_WEBHOOK = ResourceKind(
    group="admissionregistration.k8s.io",
    version="v1",
    plural="validatingwebhookconfigurations",
    kind="ValidatingWebhookConfiguration",
    is_namespaced=False,
)


async def ready_model(world: World, name: str = "m", **spec: Any) -> None:
    await world.apply_model(name, **spec)
    await world.wait_children(name)
    await world.make_ready(name)
    await until(lambda: is_ready_in_full(world, name))


async def is_ready_in_full(world: World, name: str) -> bool:
    status = (await world.model(name))["status"]
    return bool(status["readyReplicas"] == status["desiredReplicas"]) and await is_true(world, name, "Ready")


async def is_true(world: World, name: str, condition: str) -> bool:
    return (await world.condition(name, condition)).get("status") == "True"


async def test_a_model_gets_one_child_of_each_kind_and_becomes_ready(operator: OperatorProcess, world: World) -> None:
    await ready_model(world, replicas=2)
    model = await world.model("m")
    children = [item for kind in CHILD_KINDS for item in await world.children(kind, "m")]
    assert len(children) == len(CHILD_KINDS)
    owners = {(owner["uid"], owner["controller"]) for item in children for owner in item["metadata"]["ownerReferences"]}
    assert owners == {(model["metadata"]["uid"], True)}
    assert model["status"]["readyReplicas"] == 2
    # Neither kopf nor we leave traces: with a finalizer nobody could delete it while the operator is away.
    assert "finalizers" not in model["metadata"]
    assert model["metadata"].get("annotations", {}) == {}


async def test_what_changed_is_told_in_events_once(operator: OperatorProcess, world: World) -> None:
    await ready_model(world)
    await operator.quiet()
    listed = await world.client.list(
        Selection(kind=EVENT, namespace=world.namespace, field_selector="involvedObject.name=m")
    )
    told = [(event["type"], event["reason"], event["message"]) for event in listed.items]
    assert told
    assert len(told) == len(set(told))


async def test_a_second_reconcile_writes_nothing(operator: OperatorProcess, world: World) -> None:
    await ready_model(world, replicas=2)
    await operator.quiet()
    versions, writes = await world.versions("m"), await operator.writes()
    passes = sum((await operator.samples("modelfleet_operator_reconciles_total")).values())
    for value in range(3):
        touched = {"metadata": {"annotations": {"touched": str(value)}}}
        await world.client.merge_patch(world.ref(LLM_DEPLOYMENT, "m"), touched)
        await operator.quiet(seconds=0.2)
    assert sum((await operator.samples("modelfleet_operator_reconciles_total")).values()) >= passes + 3
    assert await operator.writes() == writes
    touched_model = f"{names.KIND}/m"
    assert {**await world.versions("m"), touched_model: ""} == {**versions, touched_model: ""}


@pytest.mark.parametrize("with_signal", [signal.SIGTERM, signal.SIGKILL])
async def test_an_operator_stopped_or_killed_and_started_again_writes_nothing(
    api_server: ApiServer, world: World, tmp_path: Path, with_signal: signal.Signals
) -> None:
    first = OperatorProcess(api_server.kubeconfig_path, directory=tmp_path, system_namespace=world.namespace)
    async with first:
        await ready_model(world, replicas=2)
        await first.quiet()
        exit_code = await first.stop(with_signal=with_signal)
        assert exit_code == (0 if with_signal is signal.SIGTERM else -signal.SIGKILL)
    versions = await world.versions("m")
    async with OperatorProcess(
        api_server.kubeconfig_path, directory=tmp_path, system_namespace=world.namespace
    ) as second:
        await second.quiet()
        assert await second.writes() == {}
    assert await world.versions("m") == versions


async def test_what_others_change_in_children_is_repaired(operator: OperatorProcess, world: World) -> None:
    await ready_model(world)
    (service,) = await world.children(SERVICE, "m")
    (config,) = await world.children(CONFIG_MAP, "m")
    (deployment,) = await world.children(DEPLOYMENT, "m")
    service_ref = world.ref(SERVICE, service["metadata"]["name"])
    await world.client.merge_patch(service_ref, {"spec": {"selector": {names.LABEL_MODEL: "other"}}})
    await world.client.merge_patch(
        world.ref(DEPLOYMENT, deployment["metadata"]["name"]), {"metadata": {"labels": {names.LABEL_MODEL: "other"}}}
    )
    await world.client.delete(world.ref(CONFIG_MAP, config["metadata"]["name"]))

    async def is_repaired() -> bool:
        restored = await world.client.get(service_ref)
        configs = await world.children(CONFIG_MAP, "m")
        deployments = await world.children(DEPLOYMENT, "m")
        is_config_back = [item["data"] for item in configs] == [config["data"]]
        return restored["spec"]["selector"] == service["spec"]["selector"] and is_config_back and len(deployments) == 1

    await until(is_repaired)


@pytest.mark.parametrize(
    "limits", [{"maxUnavailable": None, "minAvailable": 1}, {"maxUnavailable": 2}, {"maxUnavailable": "50%"}]
)
async def test_a_disruption_budget_changed_by_others_is_repaired(
    operator: OperatorProcess, world: World, limits: dict[str, Any]
) -> None:
    await world.apply_model("m")
    await world.wait_children("m")
    (budget,) = await world.children(POD_DISRUPTION_BUDGET, "m")
    ref = world.ref(POD_DISRUPTION_BUDGET, budget["metadata"]["name"])
    changed = await world.client.merge_patch(ref, {"spec": limits})
    assert changed["spec"] != budget["spec"]

    async def is_repaired() -> bool:
        return bool((await world.client.get(ref))["spec"] == budget["spec"])

    await until(is_repaired)


async def test_what_the_kubelet_says_of_a_volume_reaches_the_condition(operator: OperatorProcess, world: World) -> None:
    await world.apply_model("m")
    await world.wait_children("m")
    (deployment,) = await world.children(DEPLOYMENT, "m")
    pod = await world.create_pod(deployment, index=0)
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": NOW}
    creating = {"name": names.ENGINE_CONTAINER, "ready": False, "restartCount": 0, "image": "i", "imageID": ""}
    creating["state"] = {"waiting": {"reason": "ContainerCreating"}}
    await world.set_pod_status(
        pod["metadata"]["name"], phase="Pending", conditions=[scheduled], containerStatuses=[creating]
    )
    await world.tell_mount_failure(pod, message="MountVolume.SetUp failed: no such claim")

    async def is_reported() -> bool:
        ready = await world.condition("m", "Ready")
        return ready.get("reason") == "VolumeNotMounted" and "no such claim" in ready["message"]

    await until(is_reported, seconds=10)


async def test_a_foreign_object_of_the_same_name_is_left_alone_and_reported(
    operator: OperatorProcess, world: World
) -> None:
    foreign = {"metadata": {"name": "m", "namespace": world.namespace}, "spec": {"ports": [{"port": 1234}]}}
    created = await world.client.create(SERVICE, foreign)
    await world.apply_model("m")

    async def is_reported() -> bool:
        ready = await world.condition("m", "Accepted")
        return ready.get("reason") == "NameConflict" and "Service m" in ready["message"]

    await until(is_reported)
    await operator.quiet()
    untouched = await world.client.get(world.ref(SERVICE, "m"))
    assert untouched["metadata"]["resourceVersion"] == created["metadata"]["resourceVersion"]
    await world.client.delete(world.ref(SERVICE, "m"))
    await world.apply_model("m", replicas=2)
    await world.wait_children("m", kinds=(SERVICE,))
    assert (await world.condition("m", "Accepted")) == {} or await until(lambda: is_true(world, "m", "Accepted"))


async def test_a_child_that_the_api_server_refuses_is_reported_and_not_tried_in_a_loop(
    operator: OperatorProcess, world: World
) -> None:
    await world.apply_model("m", podTemplate={"spec": {"restartPolicy": "Sometimes"}})

    async def is_reported() -> bool:
        accepted = await world.condition("m", "Accepted")
        return accepted.get("status") == "False" and "Sometimes" in accepted["message"]

    await until(is_reported)
    await operator.quiet()
    writes = await operator.writes()
    assert writes["deployments"] == 1
    await asyncio.sleep(2)
    assert await operator.writes() == writes
    await world.apply_model("m", podTemplate={"spec": {"terminationGracePeriodSeconds": 5}})
    await world.wait_children("m", kinds=(DEPLOYMENT,))


async def test_a_write_that_must_wait_holds_up_neither_the_gate_nor_the_status(
    operator: OperatorProcess, world: World
) -> None:
    await ready_model(world)
    rule = {"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["*"], "resources": ["deployments"]}
    webhook = {
        "name": "down.example.com",
        "rules": [rule],
        "clientConfig": {"url": "https://127.0.0.1:9/"},
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": world.namespace}},
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Fail",
    }
    configuration = {"metadata": {"name": world.namespace}, "webhooks": [webhook]}
    await world.client.create(VALIDATING_WEBHOOK, configuration)
    try:
        await asyncio.sleep(1.5)  # The API server reads webhook configurations with a delay of its own.
        await world.apply_model("m", replicas=2)
        generation = (await world.model("m"))["metadata"]["generation"]
        (pod,) = await world.children(POD, "m")
        unready = {"type": "ContainersReady", "status": "False", "lastTransitionTime": NOW}
        await world.set_pod_status(pod["metadata"]["name"], conditions=[unready])
        await until(lambda: has_observed(world, generation))
        gates = [
            item["status"]
            for item in (await world.children(POD, "m"))[0]["status"]["conditions"]
            if item["type"] == names.READINESS_GATE_ROUTABLE
        ]
        assert gates == ["False"]
    finally:
        await world.client.delete(ObjectRef(kind=VALIDATING_WEBHOOK, name=world.namespace))


async def has_observed(world: World, generation: int) -> bool:
    return bool((await world.model("m"))["status"]["observedGeneration"] == generation)


async def test_a_deleted_model_is_left_to_the_garbage_collector(operator: OperatorProcess, world: World) -> None:
    await ready_model(world)
    await operator.quiet()
    writes = await operator.writes()
    children = await world.all_children("m")
    await world.client.delete(world.ref(LLM_DEPLOYMENT, "m"))
    with pytest.raises(NotFoundError):
        await world.model("m")
    await operator.quiet()
    assert await operator.writes() == writes
    assert len(await world.all_children("m")) == len(children)


async def test_a_model_created_again_waits_until_its_predecessors_children_are_collected(
    operator: OperatorProcess, world: World
) -> None:
    await ready_model(world)
    old = await world.all_children("m")
    await world.client.delete(world.ref(LLM_DEPLOYMENT, "m"))
    model = await world.apply_model("m")
    await operator.quiet()
    assert {item["metadata"]["uid"] for item in old} <= {
        item["metadata"]["uid"] for item in await world.all_children("m")
    }
    for kind in CHILD_KINDS:
        for item in await world.children(kind, "m"):
            await world.client.delete(world.ref(kind, item["metadata"]["name"]))

    async def is_ours() -> bool:
        services = await world.children(SERVICE, "m")
        return [item["metadata"]["ownerReferences"][0]["uid"] for item in services] == [model["metadata"]["uid"]]

    await until(is_ours)
    await world.wait_children("m")


async def test_of_two_replicas_one_acts_and_the_other_takes_over_without_writing(
    api_server: ApiServer, world: World, tmp_path: Path
) -> None:
    def process(name: str) -> OperatorProcess:
        return OperatorProcess(
            api_server.kubeconfig_path, directory=tmp_path, system_namespace=world.namespace, name=name
        )

    async with process("op-0") as first:
        await ready_model(world)
        standby = process("op-1")
        await standby.start()
        await until(lambda: is_ready(standby))
        assert (await first.leads(), await standby.leads()) == (1.0, 0.0)
        await first.quiet()
        versions = await world.versions("m")
        assert await first.stop() == 0
        # The lease was released, so nobody waits for it to expire (15 s).
        await until(lambda: leads(standby), seconds=5)
        await standby.quiet()
        assert await standby.writes() == {}
        assert await world.versions("m") == versions
        await world.apply_model("m", replicas=3)
        await until(lambda: has_replicas(world, 3))
        await standby.stop()
    lease = await world.client.get(ObjectRef(kind=LEASE, name="modelfleet-operator", namespace=world.namespace))
    assert lease["spec"]["holderIdentity"] == ""


async def is_ready(process: OperatorProcess) -> bool:
    return await process.status("/readyz") == 200


async def leads(process: OperatorProcess) -> bool:
    return await process.leads() == 1.0


async def has_replicas(world: World, count: int) -> bool:
    return [item["spec"]["replicas"] for item in await world.children(DEPLOYMENT, "m")] == [count]
