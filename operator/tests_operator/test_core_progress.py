"""The progress deadline: who is overdue, when to look again, and what is said meanwhile."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from modelfleet_operator.plan import decide
from modelfleet_operator.state import Plan

from tests_operator import builders
from tests_operator.builders import condition
from tests_operator.simulator import Simulator

SPEC: dict[str, Any] = {
    "model": {"source": "pvc://models/good"},
    "replicas": 2,
    "rollout": {"progressDeadlineSeconds": 600},
}
# The creation time of the builders' pods.
CREATED = datetime.fromisoformat("2026-01-02T03:00:00Z")


def starting(spec: dict[str, Any] = SPEC) -> Simulator:
    """Two pods that were created at CREATED and never got ready."""
    world = Simulator(spec=dict(spec), gets_ready=lambda template: False)
    for _ in range(3):
        world.reconcile()
        world.run_controllers()
    return world


def look(world: Simulator, *, seconds: float) -> Plan:
    """A pass this long after the pods were created, carried out as far as the status goes."""
    plan = decide(world.observe(), settings=builders.SETTINGS, now=CREATED + timedelta(seconds=seconds))
    world.status |= plan.status or {}
    return plan


def shown(world: Simulator) -> dict[str, str]:
    return {item["type"]: item["reason"] for item in world.status["conditions"] if item["status"] == "True"}


def test_before_the_deadline_the_next_look_is_when_the_first_replica_is_overdue() -> None:
    world = starting()
    assert look(world, seconds=300).requeue_after_seconds == 301.0
    assert shown(world) == {"Accepted": "Accepted", "Scheduled": "Scheduled", "Reconciling": "Scaling"}


def test_past_the_deadline_the_model_stalls_and_time_changes_nothing_more() -> None:
    world = starting()
    plan = look(world, seconds=601)
    assert plan.requeue_after_seconds is None
    assert {event.reason for event in plan.events} >= {"ProgressDeadlineExceeded", "NewRevisionNotReady"}
    assert shown(world) == {
        "Accepted": "Accepted",
        "Scheduled": "Scheduled",
        "Degraded": "NewRevisionNotReady",
        "Stalled": "ProgressDeadlineExceeded",
    }
    assert look(world, seconds=3600).is_empty


def test_a_stall_names_what_the_pods_suffer_from() -> None:
    world = starting()
    for item in world.pods.values():
        item["status"]["containerStatuses"][0]["state"] = {
            "waiting": {"reason": "ErrImagePull", "message": "no such tag"}
        }
    look(world, seconds=601)
    assert shown(world)["Degraded"] == "ImagePullBackOff"
    stalled = next(item for item in world.status["conditions"] if item["type"] == "Stalled")
    assert stalled["message"] == "a replica did not get ready within 600 s: pod pod-1: no such tag"


def test_a_replica_that_was_ready_long_after_its_creation_gets_the_whole_deadline_again() -> None:
    world = starting()
    for item in world.pods.values():
        fell = condition("Ready", "False", lastTransitionTime="2026-01-02T05:00:00Z")
        item["status"]["conditions"] = [entry for entry in item["status"]["conditions"] if entry["type"] != "Ready"]
        item["status"]["conditions"].append(fell)
    assert look(world, seconds=2 * 3600 + 10).requeue_after_seconds == 591.0
    assert "Stalled" not in shown(world)


def test_a_revision_that_is_overdue_while_the_old_one_serves_stalls_and_a_new_spec_recovers() -> None:
    world = Simulator(spec=dict(SPEC), gets_ready=lambda template: "broken" not in str(template))
    world.settle()
    world.change({**SPEC, "image": "example/broken:1"})
    world.settle()
    look(world, seconds=601)
    assert shown(world)["Ready"] == "MinimumReplicasReady"
    assert shown(world)["Stalled"] == "ProgressDeadlineExceeded"

    world.change(SPEC)
    world.settle()
    assert shown(world) == {
        "Accepted": "Accepted",
        "Scheduled": "Scheduled",
        "EngineReady": "EngineReady",
        "Routable": "Routable",
        "Ready": "AllReplicasReady",
    }


def test_pods_that_cannot_even_be_created_are_told_with_the_api_servers_words() -> None:
    world = Simulator(spec=dict(SPEC))
    world.reconcile()
    (deployment,) = [item for (kind, _), item in world.children.items() if kind == "Deployment"]
    refused = condition("ReplicaFailure", "True", reason="FailedCreate", message="pods are forbidden: exceeded quota")
    deployment["status"] = {"observedGeneration": 1, "conditions": [refused]}
    look(world, seconds=1)
    ready = next(item for item in world.status["conditions"] if item["type"] == "Ready")
    assert (ready["reason"], ready["message"]) == ("ReplicasMissing", "pods are forbidden: exceeded quota")

    deployment["metadata"]["generation"] = 2
    look(world, seconds=2)
    ready = next(item for item in world.status["conditions"] if item["type"] == "Ready")
    assert ready["reason"] == "Pending"


def test_losing_readiness_is_told_once_and_a_wished_suspension_is_no_warning() -> None:
    world = Simulator(spec=dict(SPEC))
    world.settle()
    world.change({**SPEC, "suspend": True})
    plan = world.reconcile()
    assert [(event.type, event.reason) for event in plan.events] == [("Normal", "Scaled"), ("Normal", "NotReady")]
    assert plan.events[1].message == "Suspended: spec.suspend is true: no replica runs and nothing is served"
    for _ in range(3):
        world.run_controllers()
        assert world.reconcile().events == ()
