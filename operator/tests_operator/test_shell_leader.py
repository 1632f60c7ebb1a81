"""Leadership: the gate opens once, loss ends the process, and a clean end releases the lease."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from modelfleet_kube.lease import LeaderElector, LeaseSettings
from modelfleet_kube.resources import LEASE
from modelfleet_operator.leader import Leadership
from modelfleet_operator.metrics import Metrics

from tests_operator.world import World


def elector(world: World, *, identity: str) -> LeaderElector:
    settings = LeaseSettings(
        name="leader",
        namespace=world.namespace,
        identity=identity,
        duration_seconds=2,
        renew_deadline_seconds=1.0,
        retry_seconds=0.05,
    )
    return LeaderElector(world.client, settings, clock=time.monotonic, wall_clock=lambda: datetime.now(UTC))


def gauge(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("modelfleet_operator_leader")


@pytest.mark.apiserver
async def test_a_leader_whose_lease_is_taken_ends_its_process(world: World) -> None:
    metrics, lost = Metrics(), asyncio.Event()
    leadership = Leadership(elector(world, identity="me"), metrics=metrics, on_lost=lost.set)
    assert not leadership.gate.is_set()
    task = asyncio.create_task(leadership.run())
    await asyncio.wait_for(leadership.gate.wait(), 5)
    assert gauge(metrics) == 1.0
    await world.client.merge_patch(world.ref(LEASE, "leader"), {"spec": {"holderIdentity": "thief"}})
    await asyncio.wait_for(lost.wait(), 5)
    await task
    assert gauge(metrics) == 0.0


@pytest.mark.apiserver
async def test_a_clean_end_releases_the_lease(world: World) -> None:
    metrics = Metrics()
    leadership = Leadership(elector(world, identity="me"), metrics=metrics, on_lost=lambda: None)
    task = asyncio.create_task(leadership.run())
    await asyncio.wait_for(leadership.gate.wait(), 5)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await leadership.release()
    lease = await world.client.get(world.ref(LEASE, "leader"))
    assert (lease["spec"]["holderIdentity"], gauge(metrics)) == ("", 0.0)


async def test_without_election_the_gate_is_open_from_the_start() -> None:
    metrics = Metrics()
    leadership = Leadership(None, metrics=metrics, on_lost=lambda: None)
    task = asyncio.create_task(leadership.run())
    await asyncio.wait_for(leadership.gate.wait(), 1)
    assert gauge(metrics) == 1.0
    await leadership.release()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
