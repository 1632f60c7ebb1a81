"""Leader election: the decision with exact times, and two contenders on a real API server."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from modelfleet_kube.client import Client
from modelfleet_kube.connection import load_kubeconfig
from modelfleet_kube.errors import KubeError
from modelfleet_kube.lease import LeaderElector, LeaseSettings, Observation, Step, next_step
from modelfleet_kube.resources import LEASE, ObjectRef

from e2e.cluster.apiserver import ApiServer
from tests_kube.proxy import CuttableProxy


def held_by(holder: str) -> Observation:
    spec = {"holderIdentity": holder, "leaseDurationSeconds": 15}
    return Observation(lease={"spec": spec}, changed_at=100.0)


@pytest.mark.parametrize(
    ("observation", "now", "expected"),
    [
        (Observation(lease={}, changed_at=100.0), 100.0, Step.ACQUIRE),
        (held_by(""), 100.0, Step.ACQUIRE),
        (held_by("me"), 100.0, Step.RENEW),
        (held_by("me"), 900.0, Step.RENEW),
        (held_by("other"), 114.999, Step.WAIT),
        (held_by("other"), 115.0, Step.ACQUIRE),
    ],
)
def test_a_lease_is_taken_when_free_or_unmoved_for_its_duration(
    observation: Observation, now: float, expected: Step
) -> None:
    assert next_step(observation, identity="me", now=now) is expected


def test_times_that_would_allow_two_leaders_are_refused() -> None:
    with pytest.raises(ValueError, match="retry < renew deadline < duration"):
        LeaseSettings(name="l", namespace="n", identity="me", duration_seconds=10, renew_deadline_seconds=10.0)


def elector(client: Client, *, identity: str, namespace: str) -> LeaderElector:
    settings = LeaseSettings(
        name="leader",
        namespace=namespace,
        identity=identity,
        duration_seconds=2,
        renew_deadline_seconds=1.5,
        retry_seconds=0.1,
    )
    return LeaderElector(client, settings, clock=time.monotonic, wall_clock=lambda: datetime.now(UTC))


def nothing_expected(error: KubeError) -> None:
    raise AssertionError(f"unexpected: {error}")


def ignored(_: KubeError) -> None:
    """The network is cut on purpose."""


async def lease_spec(client: Client, namespace: str) -> dict[str, Any]:
    lease = await client.get(ObjectRef(kind=LEASE, name="leader", namespace=namespace))
    spec: dict[str, Any] = lease["spec"]
    return spec


@pytest.mark.apiserver
async def test_of_two_contenders_one_leads_and_the_other_follows_when_it_releases(
    client: Client, namespace: str
) -> None:
    first = elector(client, identity="first", namespace=namespace)
    second = elector(client, identity="second", namespace=namespace)
    await first.acquire(on_error=nothing_expected)
    holding = asyncio.create_task(first.hold(on_error=nothing_expected))
    waiting = asyncio.create_task(second.acquire(on_error=nothing_expected))
    # Renewals keep the second one out for longer than the lease's duration.
    await asyncio.sleep(2.5)
    assert (first.is_leader, second.is_leader) == (True, False)
    holding.cancel()
    with suppress(asyncio.CancelledError):
        await holding
    released_at = time.monotonic()
    await first.release()
    await asyncio.wait_for(waiting, 5)
    assert time.monotonic() - released_at < 1.5
    assert first.is_leader is False
    spec = await lease_spec(client, namespace)
    assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("second", 2)


@pytest.mark.apiserver
async def test_a_leader_cut_off_stops_before_another_starts(
    client: Client, namespace: str, api_server: ApiServer
) -> None:
    async with (
        CuttableProxy(load_kubeconfig(api_server.kubeconfig_path)) as proxy,
        Client(proxy.connection) as cuttable,
    ):
        first = elector(cuttable, identity="first", namespace=namespace)
        second = elector(client, identity="second", namespace=namespace)
        await first.acquire(on_error=nothing_expected)
        holding = asyncio.create_task(first.hold(on_error=ignored))
        waiting = asyncio.create_task(second.acquire(on_error=nothing_expected))
        await asyncio.sleep(0.3)
        proxy.cut()
        await asyncio.wait_for(holding, 5)
        assert (first.is_leader, waiting.done()) == (False, False)
        await asyncio.wait_for(waiting, 5)
    assert (await lease_spec(client, namespace))["holderIdentity"] == "second"


@pytest.mark.apiserver
async def test_a_leader_whose_lease_was_taken_notices_at_its_next_renewal(client: Client, namespace: str) -> None:
    first = elector(client, identity="first", namespace=namespace)
    await first.acquire(on_error=nothing_expected)
    ref = ObjectRef(kind=LEASE, name="leader", namespace=namespace)
    holding = asyncio.create_task(first.hold(on_error=nothing_expected))
    await client.merge_patch(ref, {"spec": {"holderIdentity": "thief"}})
    await asyncio.wait_for(holding, 2)
    assert first.is_leader is False
