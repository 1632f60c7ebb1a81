"""Random users and random crashes: whatever happens in whatever order, the invariants hold and the end is reached."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests_operator import builders
from tests_operator.simulator import Simulator

STEPS = 40


def spec(generator: random.Random) -> dict[str, Any]:
    """One of a few specs: two good ones and one whose pods never get ready, at any size, sometimes suspended."""
    kind = generator.choice(["good", "next", "broken"])
    given: dict[str, Any] = {"model": {"source": f"pvc://models/{kind}"}, "replicas": generator.randint(0, 4)}
    if kind == "broken":
        given["image"] = "example/broken:1"
    if generator.random() < 0.1:
        given["suspend"] = True
    return given


def crash_one(world: Simulator, generator: random.Random) -> None:
    """One pod stops being ready; the simulator lets it come back where its revision can."""
    if world.pods:
        victim = world.pods[generator.choice(sorted(world.pods))]
        for entry in victim["status"]["conditions"]:
            if entry["type"] in ("ContainersReady", "Ready"):
                entry["status"] = "False"


@pytest.mark.parametrize("seed", range(20))
def test_no_pass_of_the_operator_ever_asks_for_too_many_or_takes_the_last_that_serve(seed: int) -> None:
    generator = random.Random(seed)
    world = Simulator(spec=spec(generator), gets_ready=lambda template: "broken" not in str(template))
    for _ in range(STEPS):
        if generator.random() < 0.15:
            world.change(spec(generator))
        if generator.random() < 0.1:
            crash_one(world, generator)
        ready_before = _least_ready(world)
        world.reconcile()
        desired = 0 if world.spec.get("suspend") else world.spec["replicas"]
        assert world.wanted_total() <= desired + 1
        assert _least_ready(world) >= min(ready_before, desired)
        world.run_controllers()
    world.settle()
    assert world.reconcile().is_empty

    good = {"model": {"source": "pvc://models/last"}, "replicas": 3}
    world.change(good)
    world.settle()
    assert (world.ready_count(), len(world.pods)) == (3, 3)
    assert {item["type"] for item in world.status["conditions"]} == {
        "Accepted",
        "Scheduled",
        "EngineReady",
        "Routable",
        "Ready",
    }


def _least_ready(world: Simulator) -> int:
    """How many ready pods are left once the Deployments have done what is asked; unready pods go first."""
    left = 0
    for (kind, name), deployment in world.children.items():
        if kind == "Deployment":
            ready = [
                item
                for item in world.pods.values()
                if item["owner"] == name
                and builders.condition("Ready", "True")
                in [{"type": entry["type"], "status": entry["status"]} for entry in item["status"]["conditions"]]
            ]
            left += min(len(ready), deployment["spec"]["replicas"])
    return left
