"""The decision as a whole: quiet when nothing changed, pinned across upgrades, honest about refusals."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from modelfleet_operator.plan import decide
from modelfleet_operator.state import ApplyError, Plan, PodGate

from tests_operator import builders
from tests_operator.builders import pod, pods, running_status
from tests_operator.simulator import Simulator

GOOD: dict[str, Any] = {"model": {"source": "pvc://models/good"}, "replicas": 1}


def settled() -> Simulator:
    world = Simulator(spec=dict(GOOD))
    world.settle()
    return world


def test_a_second_pass_over_an_unchanged_world_writes_nothing() -> None:
    world = settled()
    later = builders.NOW + timedelta(days=1)
    assert decide(world.observe(), settings=builders.SETTINGS, now=later) == Plan()


def test_a_new_operator_with_other_default_images_rolls_nothing() -> None:
    world = settled()
    newer = replace(builders.SETTINGS, engine_image="modelfleet/engine-cpu:2", engine_pull_policy="Always")
    assert decide(world.observe(), settings=newer, now=builders.NOW).is_empty


def test_a_changed_restarted_at_renders_anew_with_the_new_operators_image() -> None:
    world = settled()
    world.settings = replace(builders.SETTINGS, engine_image="modelfleet/engine-cpu:2")
    world.change({**GOOD, "restartedAt": "2026-01-02T00:00:00Z"})
    world.settle()
    (deployment,) = [item for (kind, _), item in world.children.items() if kind == "Deployment"]
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "modelfleet/engine-cpu:2"


@pytest.mark.parametrize(
    ("change", "does_roll"),
    [
        ({"replicas": 3}, False),
        ({"suspend": True}, False),
        ({"rollout": {"progressDeadlineSeconds": 60}}, False),
        ({"rollout": {"drainTimeoutSeconds": 60}}, True),
        ({"engine": {"maxNumSeqs": 8}}, True),
        # The API server writes this default into objects that were stored before the field existed.
        ({"engine": {"prefixCaching": True}}, False),
        ({"engine": {"prefixCaching": False}}, True),
        ({"engine": {"itlTargetMilliseconds": 50}}, True),
        ({"model": {"source": "pvc://models/other"}}, True),
        ({"image": "own/engine:1"}, True),
        ({"podTemplate": {"metadata": {"annotations": {"a": "b"}}}}, True),
    ],
)
def test_only_what_is_rendered_into_a_pod_makes_a_new_revision(change: dict[str, Any], does_roll: bool) -> None:
    world = settled()
    before = world.status["updateRevision"]
    world.change({**GOOD, **change})
    world.reconcile()
    assert (world.status["updateRevision"] != before) is does_roll


def test_defaults_that_a_newer_crd_fills_in_write_nothing() -> None:
    world = Simulator(spec={**GOOD, "engine": {"dtype": "bfloat16"}})
    world.settle()
    world.spec = {**GOOD, "engine": {"dtype": "bfloat16", "prefixCaching": True}}
    assert decide(world.observe(), settings=builders.SETTINGS, now=builders.NOW).is_empty


def test_drift_of_a_child_is_repaired_and_nothing_else_is_written() -> None:
    world = settled()
    world.children[("Service", "chat")]["spec"]["selector"] = {"stolen": "yes"}
    plan = decide(world.observe(), settings=builders.SETTINGS, now=builders.NOW)
    assert [(item["kind"], item["metadata"]["name"]) for item in plan.apply] == [("Service", "chat")]


def test_defaults_and_normalised_quantities_of_the_api_server_are_no_drift() -> None:
    world = Simulator(spec={**GOOD, "resources": {"requests": {"cpu": "1000m", "memory": "1024Mi"}}})
    world.settle()
    (deployment,) = [item for (kind, _), item in world.children.items() if kind == "Deployment"]
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container["resources"]["requests"] = {"cpu": "1", "memory": "1Gi"}
    container["terminationMessagePath"] = "/dev/termination-log"
    deployment["spec"]["strategy"] = {"type": "RollingUpdate"}
    assert decide(world.observe(), settings=builders.SETTINGS, now=builders.NOW).is_empty


def test_a_spec_that_breaks_a_newer_rule_is_refused_and_its_children_are_left_alone() -> None:
    world = settled()
    world.change({"model": {"source": "ftp://nowhere"}})
    plan = decide(world.observe(), settings=builders.SETTINGS, now=builders.NOW)
    assert (plan.apply, plan.delete, plan.apply_first) == ((), (), ())
    assert plan.status is not None
    found = {item["type"]: item for item in plan.status["conditions"]}
    assert (found["Accepted"]["status"], found["Accepted"]["reason"]) == ("False", "InvalidSpec")
    assert "model.source must be" in found["Accepted"]["message"]
    assert found["Ready"]["status"] == "True"
    assert found["Stalled"]["reason"] == "InvalidSpec"
    assert "desiredReplicas" not in plan.status
    assert [event.reason for event in plan.events] == ["InvalidSpec", "InvalidSpec"]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ({"spec": {"containers": [{"name": "engine", "$patch": "delete"}]}}, "may not remove engine from containers"),
        ({"metadata": {"labels": {"modelfleet.dev/model": "other"}}}, "may not change the label modelfleet.dev/model"),
        ({"replicas": 3}, "has metadata and spec only, not replicas"),
    ],
)
def test_a_pod_template_that_breaks_the_operators_ground_is_refused(template: dict[str, Any], words: str) -> None:
    seen = builders.observed({**GOOD, "podTemplate": template})
    plan = decide(seen, settings=builders.SETTINGS, now=builders.NOW)
    assert plan.apply == ()
    assert plan.status is not None
    accepted = plan.status["conditions"][0]
    assert (accepted["reason"], accepted["status"]) == ("InvalidTemplate", "False")
    assert words in accepted["message"]


@pytest.mark.parametrize(("code", "reason"), [(403, "Forbidden"), (409, "NameConflict"), (422, "InvalidTemplate")])
def test_what_the_api_server_refuses_is_told_with_its_words_and_stays_planned(code: int, reason: str) -> None:
    error = ApplyError(kind="Deployment", name="chat-x", status_code=code, message="because")
    plan = decide(builders.observed(GOOD, apply_errors=(error,)), settings=builders.SETTINGS, now=builders.NOW)
    assert plan.status is not None
    assert plan.status["conditions"][0]["reason"] == reason
    assert plan.status["conditions"][0]["message"] == "Deployment chat-x: because"
    assert len(plan.apply) == 5


def test_a_leaf_that_is_no_longer_meant_is_taken_back_by_a_new_version_of_the_operator() -> None:
    world = settled()
    service = world.children[("Service", "chat")]
    service["spec"]["publishNotReadyAddresses"] = True
    service["metadata"]["annotations"]["modelfleet.dev/desired-hash"] = "of-an-older-operator"
    plan = decide(world.observe(), settings=builders.SETTINGS, now=builders.NOW)
    assert [(item["kind"], item["metadata"]["name"]) for item in plan.apply] == [("Service", "chat")]


@pytest.mark.parametrize(
    ("first", "second"),
    [({"cpu": "1000m", "memory": "1024Mi"}, {"cpu": "1", "memory": "1Gi"}), ({"cpu": 2}, {"cpu": "2"})],
)
def test_the_same_quantity_written_otherwise_rolls_nothing(first: dict[str, Any], second: dict[str, Any]) -> None:
    world = Simulator(spec={**GOOD, "resources": {"requests": first}})
    world.settle()
    before, pods_before = world.status["updateRevision"], set(world.pods)
    world.change({**GOOD, "resources": {"requests": second}})
    world.settle()
    assert (world.status["updateRevision"], set(world.pods)) == (before, pods_before)
    assert decide(world.observe(), settings=builders.SETTINGS, now=builders.NOW).is_empty


def test_children_of_a_deleted_namesake_are_waited_for() -> None:
    world = settled()
    seen = world.observe()
    recreated = replace(seen, resource=replace(seen.resource, uid="uid-new", status={}))
    plan = decide(recreated, settings=builders.SETTINGS, now=builders.NOW)
    assert (plan.apply_first, plan.apply, plan.delete, plan.requeue_after_seconds) == ((), (), (), 2.0)
    assert plan.status is not None
    ready, reconciling = plan.status["conditions"]
    assert (ready["type"], ready["status"], ready["reason"]) == ("Ready", "False", "Pending")
    assert "of a deleted LLMDeployment is gone" in ready["message"]
    assert (reconciling["type"], reconciling["status"]) == ("Reconciling", "True")


def test_an_evicted_pod_keeps_no_old_revision_alive() -> None:
    world = settled()
    old = world.status["currentRevision"]
    (name,) = world.pods
    world.pods["evicted"] = {**world.pods[name], **pod("evicted", revision=old.rpartition("-")[2])}
    world.pods["evicted"]["status"] = {"phase": "Failed", "reason": "Evicted", "conditions": []}
    world.change({**GOOD, "model": {"source": "pvc://models/next"}})
    for _ in range(12):
        world.reconcile()
        world.run_controllers()
    assert ("Deployment", old) not in world.children
    assert [item["name"] for item in world.status["revisions"]] == [world.status["currentRevision"]]


def test_more_live_revisions_than_the_status_holds_do_not_stop_it_from_being_written() -> None:
    children = []
    for number in range(1, 41):
        labels = {"modelfleet.dev/revision": f"r{number}"}
        metadata = {"name": f"chat-r{number}", "namespace": "team", "uid": f"u{number}", "labels": labels}
        pin = {"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": metadata, "revision": number}
        spec = {"replicas": 0}
        children += [
            {**pin, "data": {}},
            {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec},
        ]
    plan = decide(builders.observed(GOOD, children=tuple(children)), settings=builders.SETTINGS, now=builders.NOW)
    assert plan.status is not None
    assert [item["revision"] for item in plan.status["revisions"]] == list(range(40, 8, -1))


def test_a_model_that_is_being_deleted_is_left_to_the_garbage_collector() -> None:
    seen = settled().observe()
    gone = replace(seen, resource=replace(seen.resource, is_deleting=True))
    assert decide(gone, settings=builders.SETTINGS, now=builders.NOW) == Plan()


def test_the_gate_follows_the_containers_and_spares_pods_that_go() -> None:
    views = pods(
        pod("fresh", status=running_status(routable=None)),
        pod("fell", status=running_status(containers_ready=False, routable=True)),
        pod("goes", status=running_status(routable=None), deleting=True),
        pod("fine", status=running_status()),
    )
    plan = decide(builders.observed(GOOD, pods=views), settings=builders.SETTINGS, now=builders.NOW)
    assert plan.gates == (
        PodGate(pod_name="fresh", pod_uid="uid-fresh", is_routable=True, reason="ContainersReady"),
        PodGate(pod_name="fell", pod_uid="uid-fell", is_routable=False, reason="ContainersNotReady"),
    )


def test_a_deployment_past_its_progress_deadline_stalls_the_model_until_the_spec_changes() -> None:
    broken = {**GOOD, "image": "example/broken:1"}
    world = Simulator(spec=broken, gets_ready=lambda template: "broken" not in str(template))
    world.settle()
    (deployment,) = [item for (kind, _), item in world.children.items() if kind == "Deployment"]
    progress = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    deployment["status"] = {"observedGeneration": 1, "conditions": [progress]}
    world.reconcile()
    found = {item["type"]: item for item in world.status["conditions"]}
    assert found["Stalled"]["reason"] == "ProgressDeadlineExceeded"
    assert "within 600 s" in found["Stalled"]["message"]
    assert "Reconciling" not in found
    assert (found["Degraded"]["status"], found["Degraded"]["reason"]) == ("True", "NewRevisionNotReady")

    world.change(GOOD)
    world.settle()
    assert "Stalled" not in {item["type"] for item in world.status["conditions"]}


def test_transition_times_move_only_when_a_status_does_and_events_tell_each_change_once() -> None:
    world = Simulator(spec=dict(GOOD))
    first = world.reconcile()
    assert [event.reason for event in first.events] == ["RevisionChanged"]
    before = {item["type"]: item["lastTransitionTime"] for item in world.status["conditions"]}
    told: list[str] = []
    for minute in range(1, 8):
        world.run_controllers()
        seen = world.observe()
        plan = decide(seen, settings=builders.SETTINGS, now=builders.NOW + timedelta(minutes=minute))
        told += [event.reason for event in plan.events]
        world.reconcile()
    assert told == ["Ready"]
    after = {item["type"]: item["lastTransitionTime"] for item in world.status["conditions"]}
    assert after["Accepted"] == before["Accepted"]


def test_a_gpu_without_an_engine_image_for_gpus_is_refused_with_what_to_set() -> None:
    seen = builders.observed({**GOOD, "placement": {"gpu": {}}})
    plan = decide(seen, settings=replace(builders.SETTINGS, engine_gpu_image=None), now=builders.NOW)
    assert plan.apply == ()
    assert plan.status is not None
    accepted = plan.status["conditions"][0]
    assert (accepted["reason"], accepted["status"]) == ("InvalidSpec", "False")
    assert "set spec.image, or engine.gpuImage of the chart" in accepted["message"]
