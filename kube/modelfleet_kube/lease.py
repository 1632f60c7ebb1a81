"""One leader among several processes, by a coordination.k8s.io/v1 Lease.

`next_step` is PURE; `LeaderElector` does the requests. As in client-go, a lease counts as expired when it has not
changed for its duration *on our own clock*: clocks of other machines are never compared.
Must not know what leading means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from modelfleet_kube.client import Client
from modelfleet_kube.errors import ConflictError, KubeError, NotFoundError
from modelfleet_kube.resources import LEASE, ObjectRef


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseSettings:
    """Which lease, who we are, and client-go's default times.

    Others may take over `duration_seconds` after our last renewal, so we must have stopped before that: after
    `renew_deadline_seconds` without a renewal.
    """

    name: str
    namespace: str
    identity: str
    duration_seconds: int = 15
    renew_deadline_seconds: float = 10.0
    retry_seconds: float = 2.0

    def __post_init__(self) -> None:
        if not self.retry_seconds < self.renew_deadline_seconds < self.duration_seconds:
            raise ValueError(
                "a lease needs retry < renew deadline < duration, given "
                f"{self.retry_seconds}, {self.renew_deadline_seconds}, {self.duration_seconds} seconds"
            )


class Step(StrEnum):
    """What a contender does next."""

    RENEW = "renew"
    ACQUIRE = "acquire"
    WAIT = "wait"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The lease as last read, and when (own monotonic clock) it was first seen so."""

    lease: dict[str, Any]
    changed_at: float


def next_step(observation: Observation, *, identity: str, now: float) -> Step:
    """Renews what is ours, takes what is nobody's or has not moved for its duration, else waits."""
    spec = observation.lease.get("spec") or {}
    holder = spec.get("holderIdentity") or ""
    if holder == identity:
        return Step.RENEW
    if not holder:
        return Step.ACQUIRE
    expires = observation.changed_at + float(spec.get("leaseDurationSeconds") or 0)
    return Step.ACQUIRE if now >= expires else Step.WAIT


class LeaderElector:
    """Contends until cancelled. `clock` is monotonic; `wall_clock` gives aware UTC times for the record only."""

    def __init__(
        self,
        client: Client,
        settings: LeaseSettings,
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], datetime],
    ) -> None:
        self._client = client
        self._settings = settings
        self._clock = clock
        self._wall_clock = wall_clock
        self._observation: Observation | None = None
        self._ref = ObjectRef(kind=LEASE, name=settings.name, namespace=settings.namespace)
        self._renewed_at = 0.0
        self.is_leader = False

    async def acquire(self, *, on_error: Callable[[KubeError], None]) -> None:
        """Returns once we lead."""
        while not self.is_leader:
            # The lease counts from before the request: an answer that comes late finds it partly used up.
            self._renewed_at = self._clock()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.renew_deadline_seconds):
                    await self._attempt(on_error)
            if not self.is_leader:
                await asyncio.sleep(self._settings.retry_seconds)

    async def hold(self, *, on_error: Callable[[KubeError], None]) -> None:
        """Renews; returns when leadership is lost: stop writing at once, others may start."""
        renewed_at = self._renewed_at
        while self.is_leader:
            await asyncio.sleep(self._settings.retry_seconds)
            deadline = renewed_at + self._settings.renew_deadline_seconds
            started_at = self._clock()
            try:
                async with asyncio.timeout(max(0.0, deadline - started_at)):
                    is_renewed = await self._attempt(on_error)
            except TimeoutError:
                is_renewed = False
            if is_renewed:
                renewed_at = started_at
            elif self._clock() >= deadline:
                self.is_leader = False

    async def release(self) -> None:
        """Gives the lease up, so that another contender need not wait for it to expire.

        Raises a KubeError where that fails; it then expires by itself.
        """
        if not self.is_leader:
            return
        self.is_leader = False
        # Twice at most: a renewal cancelled half-way may still arrive between our read and our write.
        for attempts_left in (1, 0):
            lease = await self._client.get(self._ref)
            if lease["spec"].get("holderIdentity") != self._settings.identity:
                return
            spec = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
            try:
                await self._client.update(LEASE, {**lease, "spec": spec})
            except ConflictError:
                if not attempts_left:
                    raise
            else:
                return

    async def _attempt(self, on_error: Callable[[KubeError], None]) -> bool:
        """One try to acquire or renew; True where we hold the lease as of now."""
        try:
            lease = await self._read()
            step = next_step(self._observe(lease), identity=self._settings.identity, now=self._clock())
            if step is Step.WAIT:
                self.is_leader = False
                return False
            self._observe(await self._client.update(LEASE, self._claimed(lease, step=step)))
        except ConflictError:
            return False  # Another contender was quicker; the next read tells who.
        except KubeError as error:
            on_error(error)
            return False
        self.is_leader = True
        return True

    async def _read(self) -> dict[str, Any]:
        try:
            return await self._client.get(self._ref)
        except NotFoundError:
            metadata = {"name": self._settings.name, "namespace": self._settings.namespace}
            empty = {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata, "spec": {}}
            return await self._client.create(LEASE, empty)

    def _observe(self, lease: dict[str, Any]) -> Observation:
        previous = self._observation
        is_same = previous is not None and previous.lease["metadata"].get("resourceVersion") == lease["metadata"].get(
            "resourceVersion"
        )
        if previous is None or not is_same:
            self._observation = Observation(lease=lease, changed_at=self._clock())
        else:
            self._observation = previous
        return self._observation

    def _claimed(self, lease: dict[str, Any], *, step: Step) -> dict[str, Any]:
        spec = dict(lease.get("spec") or {})
        now = self._wall_clock().strftime("%Y-%m-%dT%H:%M:%S.%fZ")  # MicroTime
        if step is Step.ACQUIRE:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + 1
        spec["holderIdentity"] = self._settings.identity
        spec["leaseDurationSeconds"] = self._settings.duration_seconds
        spec["renewTime"] = now
        return {**lease, "spec": spec}
