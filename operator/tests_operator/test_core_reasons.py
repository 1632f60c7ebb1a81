"""From what pods say to what a person reads: each trouble has its reason, its words, and goes when it is over."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from modelfleet_api import names
from modelfleet_operator.plan import decide
from modelfleet_operator.state import MountFailure

from tests_operator import builders
from tests_operator.builders import engine_status, pod, pods, running_status


def terminated(reason: str, code: int, message: str = "") -> dict[str, Any]:
    return {"terminated": {"reason": reason, "exitCode": code, "message": message}}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


CRASH_LOOP = waiting("CrashLoopBackOff", "back-off 10s restarting failed container")
UNSCHEDULABLE = {
    "phase": "Pending",
    "conditions": [
        builders.condition(
            "PodScheduled",
            "False",
            reason="Unschedulable",
            message="0/1 nodes are available: 1 Insufficient cpu.",
        )
    ],
}
FETCH_REFUSED = {
    "phase": "Pending",
    "conditions": [builders.condition("PodScheduled", "True")],
    "initContainerStatuses": [
        {"name": "fetch-model", "restartCount": 1, "state": CRASH_LOOP, "lastState": terminated("Error", 3, "401: no")}
    ],
}

TABLE = [
    ("Unschedulable", "0/1 nodes are available: 1 Insufficient cpu.", UNSCHEDULABLE),
    ("ImagePullBackOff", "not found", engine_status(state=waiting("ErrImagePull", "image x: not found"))),
    ("ImagePullBackOff", "Back-off", engine_status(state=waiting("ImagePullBackOff", "Back-off pulling image"))),
    ("ImagePullBackOff", "no pull", engine_status(state=waiting("ErrImageNeverPull", "no pull"))),
    ("InvalidImageName", "couldn't parse", engine_status(state=waiting("InvalidImageName", "couldn't parse"))),
    (
        "CreateContainerError",
        'secret "s" not found',
        engine_status(state=waiting("CreateContainerConfigError", 'secret "s" not found')),
    ),
    (
        "OOMKilled",
        "memory",
        engine_status(restartCount=1, state=CRASH_LOOP, lastState=terminated("OOMKilled", 137)),
    ),
    (
        "OOMKilled",
        "KV cache",
        engine_status(restartCount=1, state=CRASH_LOOP, lastState=terminated("Error", 4, "KV cache")),
    ),
    (
        "CrashLoopBackOff",
        "ValueError: the last line",
        engine_status(
            restartCount=3,
            state=CRASH_LOOP,
            lastState=terminated("Error", 1, "Traceback\n\nValueError: the last line\n"),
        ),
    ),
    (
        "ModelNotFound",
        "no model at /models/x",
        engine_status(restartCount=1, state=CRASH_LOOP, lastState=terminated("Error", 3, "no model at /models/x")),
    ),
    (
        "EngineExited",
        "signal 9",
        engine_status(restartCount=1, state={"running": {}}, lastState=terminated("Error", 137)),
    ),
    ("ModelNotFound", "401: no", FETCH_REFUSED),
    ("Evicted", "low on memory", {"phase": "Failed", "reason": "Evicted", "message": "low on memory"}),
]


def read(pod_status: dict[str, Any], **more: Any) -> dict[str, dict[str, Any]]:
    """The conditions decided for one pod of the wanted revision with this status."""
    first = decide(builders.observed(), settings=builders.SETTINGS, now=builders.NOW)
    deployment = next(item for item in first.apply if item["kind"] == "Deployment")
    revision = deployment["metadata"]["labels"]["modelfleet.dev/revision"]
    seen = builders.observed(children=first.apply, pods=pods(pod(revision=revision, status=pod_status)), **more)
    plan = decide(seen, settings=builders.SETTINGS, now=builders.NOW)
    assert plan.status is not None
    return {item["type"]: item for item in plan.status["conditions"]}


@pytest.mark.parametrize(("reason", "words", "status"), TABLE)
def test_a_trouble_is_the_reason_of_ready_and_of_degraded_with_words_to_act_on(
    reason: str, words: str, status: dict[str, Any]
) -> None:
    found = read(status)
    assert (found["Ready"]["status"], found["Ready"]["reason"]) == ("False", reason)
    assert words in found["Ready"]["message"]
    assert "chat-1" in found["Ready"]["message"]
    assert (found["Degraded"]["status"], found["Degraded"]["reason"]) == ("True", reason)


def test_an_unschedulable_pod_is_told_on_the_link_of_the_chain_that_broke() -> None:
    found = read(UNSCHEDULABLE)
    assert (found["Scheduled"]["status"], found["Scheduled"]["reason"]) == ("False", "Unschedulable")


def test_a_volume_that_cannot_be_mounted_is_told_from_the_event_until_a_container_runs() -> None:
    failure = MountFailure(pod_name="chat-1", pod_uid="uid-chat-1", message='configmap "x" not found')
    creating = engine_status(state=waiting("ContainerCreating"))
    assert read(creating, mount_failures=(failure,))["Ready"]["reason"] == "VolumeNotMounted"
    assert read(engine_status(state={"running": {}}), mount_failures=(failure,))["Ready"]["reason"] == "EngineStarting"


def test_a_late_event_of_a_volume_says_nothing_once_the_kubelet_has_mounted_it() -> None:
    failure = MountFailure(pod_name="chat-1", pod_uid="uid-chat-1", message='configmap "x" not found')
    pulling = engine_status(state=waiting("ContainerCreating"))
    pulling["conditions"].append(builders.condition("PodReadyToStartContainers", "True"))
    assert read(pulling, mount_failures=(failure,))["Ready"]["reason"] == "EngineStarting"


@pytest.mark.parametrize(
    ("ended", "message"),
    [
        (terminated("OOMKilled", 137, "GET /health 200"), "out of memory: more than resources.limits.memory allows"),
        (terminated("Error", 4, "no room for the KV cache"), "out of memory: no room for the KV cache"),
        (
            terminated("Error", 139, "loading kernels"),
            "the engine was killed by signal 11 and is restarted; its last line: loading kernels",
        ),
        (terminated("Error", 1), "the engine ended with exit code 1 and is restarted"),
    ],
)
def test_a_killed_engine_is_not_explained_by_the_line_it_happened_to_log_last(
    ended: dict[str, Any], message: str
) -> None:
    found = read(engine_status(restartCount=1, state={"running": {}}, lastState=ended))
    assert found["Ready"]["message"] == f"pod chat-1: {message}"


def test_a_crash_loop_is_one_reason_also_while_the_container_runs_for_a_moment() -> None:
    status = engine_status(restartCount=2, state={"running": {}}, lastState=terminated("Error", 1, "boom"))
    assert read(status)["Ready"]["reason"] == "CrashLoopBackOff"


def test_an_engine_that_simply_starts_is_no_trouble() -> None:
    found = read(engine_status(state={"running": {}}))
    assert (found["Ready"]["status"], found["Ready"]["reason"]) == ("False", "EngineStarting")
    assert "Degraded" not in found
    assert found["Reconciling"]["reason"] == "Scaling"


def test_a_pod_that_is_ready_again_after_a_restart_is_no_trouble() -> None:
    status = running_status()
    status["containerStatuses"][0] |= {"restartCount": 1, "lastState": terminated("Error", 137)}
    found = read(status)
    assert (found["Ready"]["status"], found["Ready"]["reason"]) == ("True", "AllReplicasReady")
    assert set(found) == {"Accepted", "Scheduled", "EngineReady", "Routable", "Ready"}


def test_containers_ready_without_the_gate_are_not_routable_yet() -> None:
    found = read(running_status(routable=None))
    assert found["EngineReady"]["status"] == "True"
    assert (found["Routable"]["status"], found["Ready"]["status"]) == ("False", "False")


def gated(seconds_ago: float) -> dict[str, Any]:
    """A ready pod whose gate was opened so long ago."""
    status = running_status()
    opened = (builders.NOW - timedelta(seconds=seconds_ago)).strftime("%Y-%m-%dT%H:%M:%SZ")
    gate = next(item for item in status["conditions"] if item["type"] == names.READINESS_GATE_ROUTABLE)
    gate["lastTransitionTime"] = opened
    return status


def test_the_url_counts_as_answering_only_once_the_service_had_time_to_learn_of_the_replica() -> None:
    early, late, ahead = read(gated(1)), read(gated(3)), read(gated(-60))
    assert (early["Ready"]["status"], early["Ready"]["reason"]) == ("False", "NotRoutable")
    assert early["Reconciling"]["status"] == "True"
    assert (late["Ready"]["status"], ahead["Ready"]["status"]) == ("True", "True")


def test_a_url_that_answers_stays_ready_while_the_service_learns_of_another_replica() -> None:
    was = {
        "type": "Ready",
        "status": "True",
        "reason": "AllReplicasReady",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    before = {"conditions": [was]}
    assert read(gated(1), status=before)["Ready"]["status"] == "True"
