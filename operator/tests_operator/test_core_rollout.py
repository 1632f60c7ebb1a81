"""Whole rollouts: invariants that hold at every step, and the ends they reach."""

from __future__ import annotations

import pytest
from modelfleet_operator.rollout import LiveRevision, next_step
from modelfleet_operator.state import Manifest

from tests_operator.simulator import Simulator

GOOD = {"model": {"source": "pvc://models/good"}}
NEXT = {"model": {"source": "pvc://models/next"}}
BROKEN = {"model": {"source": "pvc://models/broken"}}


def is_not_broken(template: Manifest) -> bool:
    """Pods of a template with the variable BROKEN never get ready."""
    return "BROKEN" not in str(template)


def with_replicas(spec: Manifest, count: int) -> dict[str, object]:
    return {**spec, "replicas": count}


def broken(count: int) -> dict[str, object]:
    return {**BROKEN, "replicas": count, "engine": {"env": [{"name": "BROKEN", "value": "1"}]}}


def serving(count: int) -> Simulator:
    """A settled model with `count` ready replicas."""
    world = Simulator(spec=with_replicas(GOOD, count), gets_ready=is_not_broken)
    world.settle()
    assert world.ready_count() == count
    return world


def conditions(world: Simulator) -> dict[str, str]:
    return {item["type"]: f"{item['status']}/{item['reason']}" for item in world.status["conditions"]}


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_rollout_never_has_more_than_one_extra_replica_nor_fewer_ready_than_wanted(count: int) -> None:
    world = serving(count)
    world.change(with_replicas(NEXT, count))

    def check(seen: Simulator) -> None:
        assert seen.wanted_total() <= count + 1
        assert seen.ready_count() >= count

    world.settle(check=check)

    assert world.ready_count() == count == len(world.pods)
    assert world.status["currentRevision"] == world.status["updateRevision"]
    assert [kind for kind, _ in world.children].count("Deployment") == 1
    assert conditions(world)["Ready"] == "True/AllReplicasReady"


@pytest.mark.parametrize("count", [1, 3])
def test_a_revision_that_never_gets_ready_leaves_all_old_replicas_serving(count: int) -> None:
    world = serving(count)
    old = world.status["currentRevision"]
    world.change(broken(count))

    world.settle(check=lambda seen: _at_least_ready(seen, count))

    assert world.ready_count() == count
    assert len(world.pods) == count + 1
    assert world.status["currentRevision"] == old
    assert world.status["updateRevision"] != old


def _at_least_ready(seen: Simulator, count: int) -> None:
    assert seen.ready_count() >= count


def test_going_back_from_a_broken_revision_reuses_the_pinned_old_one_and_its_pods() -> None:
    world = serving(2)
    pods = set(world.pods)
    first = world.status["currentRevision"]
    world.change(broken(2))
    world.settle()

    world.change(with_replicas(GOOD, 2))
    world.settle(check=lambda seen: _at_least_ready(seen, 2))

    assert world.status["currentRevision"] == world.status["updateRevision"] == first
    assert set(world.pods) == pods


def test_a_first_revision_that_never_served_is_replaced_at_once_without_a_surge() -> None:
    world = Simulator(spec=broken(3), gets_ready=is_not_broken)
    world.settle()

    world.change(with_replicas(GOOD, 3))
    world.reconcile()

    assert {item["spec"]["replicas"] for (kind, _), item in world.children.items() if kind == "Deployment"} == {0, 3}


def test_scaling_up_while_a_broken_revision_hangs_adds_serving_replicas() -> None:
    world = serving(1)
    world.change(broken(1))
    world.settle()

    world.change(broken(3))
    world.settle(check=lambda seen: _at_least_ready(seen, 1))

    assert world.ready_count() == 3


def test_scaling_from_one_to_three_to_one_changes_only_the_number_of_pods() -> None:
    world = serving(1)
    (first,) = world.pods
    revision = world.status["currentRevision"]

    world.change(with_replicas(GOOD, 3))
    world.settle(check=lambda seen: _at_least_ready(seen, 1))
    assert world.ready_count() == 3
    world.change(with_replicas(GOOD, 1))
    world.settle(check=lambda seen: _at_least_ready(seen, 1))

    assert world.ready_count() == 1
    assert world.status["currentRevision"] == revision
    assert first.startswith("pod-")


def test_suspend_stops_every_pod_and_resuming_brings_the_same_revision_back() -> None:
    world = serving(2)
    revision = world.status["currentRevision"]

    world.change({**GOOD, "replicas": 2, "suspend": True})
    world.settle()
    assert world.pods == {}
    assert conditions(world)["Ready"] == "False/Suspended"

    world.change(with_replicas(GOOD, 2))
    world.settle()
    assert world.status["currentRevision"] == revision
    assert world.ready_count() == 2


def test_a_third_spec_in_the_middle_of_a_rollout_keeps_the_serving_pods() -> None:
    world = serving(3)
    world.change(with_replicas(NEXT, 3))
    for _ in range(3):
        world.reconcile()
        world.run_controllers()

    world.change(with_replicas({"model": {"source": "pvc://models/third"}}, 3))
    world.settle(check=lambda seen: _at_least_ready(seen, 3))

    assert world.ready_count() == 3
    assert [kind for kind, _ in world.children].count("Deployment") == 1


@pytest.mark.parametrize("step", range(12))
def test_an_operator_that_restarts_at_any_step_decides_the_same(step: int) -> None:
    def run(*, restarts: bool) -> str:
        world = serving(3)
        world.change(with_replicas(NEXT, 3))
        for number in range(step):
            world.reconcile()
            if restarts and number == step - 1:
                # A restarted operator sees the same objects in another order and nothing else.
                world.children = dict(reversed(list(world.children.items())))
            world.run_controllers()
        world.settle()
        return repr(sorted((key, item["spec"]["replicas"]) for key, item in world.children.items() if "Depl" in key[0]))

    assert run(restarts=True) == run(restarts=False)


def test_a_current_revision_whose_pods_are_all_down_for_a_moment_is_kept() -> None:
    live = [
        LiveRevision(hash="old", number=1, replicas=2, ready=0),
        LiveRevision(hash="new", number=2, replicas=1, ready=0),
    ]
    step = next_step(desired=2, target_hash="new", live=live, current_hash="old")
    assert dict(step.replicas) == {"old": 2, "new": 1}
    assert not step.is_complete


@pytest.mark.parametrize(
    ("live", "desired", "expected"),
    [
        # Ready replicas of an older revision outlive unready ones of the current one.
        ([("old", 2, 1), ("older", 1, 1), ("new", 1, 0)], 2, {"old": 1, "older": 1, "new": 1}),
        # After a scale-in the new revision's unready replicas make room for the old ones that serve.
        ([("old", 2, 2), ("new", 2, 0)], 2, {"old": 2, "new": 1}),
        # Ready pods that are about to go do not count as serving.
        ([("old", 2, 2), ("new", 1, 3)], 3, {"old": 2, "new": 2}),
    ],
)
def test_what_serves_is_kept_whatever_else_is_there(
    live: list[tuple[str, int, int]], desired: int, expected: dict[str, int]
) -> None:
    seen = [
        LiveRevision(hash=name, number=number, replicas=replicas, ready=ready)
        for number, (name, replicas, ready) in enumerate(live)
    ]
    step = next_step(desired=desired, target_hash="new", live=seen, current_hash="old")
    assert dict(step.replicas) == expected


def test_more_than_ten_past_revisions_are_pruned_oldest_first() -> None:
    world = Simulator(spec=with_replicas(GOOD, 1))
    for number in range(14):
        world.change({"model": {"source": f"pvc://models/v{number}"}})
        world.settle()
    pins = sorted(item["revision"] for (kind, _), item in world.children.items() if kind == "ControllerRevision")
    assert pins == list(range(4, 15))
    assert [kind for kind, _ in world.children].count("ConfigMap") == 1
