"""Who goes where, and when: every request waits in its model's fair queue until an engine has room for it.

On the event loop's thread and without awaits of its own: it is told of arrivals, ends, probes and snapshots, and
resolves the futures of those who may go. Must not know HTTP.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from modelfleet_gateway import refusals
from modelfleet_gateway.errors import GatewayError
from modelfleet_gateway.fair_queue import Ticket
from modelfleet_gateway.fleet import Endpoint, Fleet, ModelId
from modelfleet_gateway.gateway_statistics import GatewayStatistics
from modelfleet_gateway.notifier import Notifier
from modelfleet_gateway.placement import Grant, Job, place
from modelfleet_gateway.pool import ModelPool

# A request that comes back from an engine that failed it may wait at least this long again.
RETRY_HOLD_SECONDS = 30.0


@dataclass(slots=True)
class _Waiter:
    job: Job
    future: asyncio.Future[Grant]


@dataclass(slots=True)
class _Timer:
    deadline: float
    handle: asyncio.TimerHandle


class Dispatcher:
    """All models' pools. Created inside a running loop."""

    def __init__(self, *, statistics: GatewayStatistics, draws: random.Random | None = None) -> None:
        self.pools: dict[ModelId, ModelPool] = {}
        self.fleet = Fleet()
        # Somebody begins or ceases to wait for a model: for the demand's long poll.
        self.demand = Notifier()
        # An engine's state as the operator is told of it has changed: for the acknowledgement's long poll.
        self.endpoints = Notifier()
        self.is_draining = False
        self._statistics = statistics
        self._draws = draws or random.Random()
        self._ids = itertools.count(1)
        self._weights: Mapping[str, int] = {}
        self._waiters: dict[str, _Waiter] = {}
        self._timers: dict[ModelId, _Timer] = {}

    @property
    def waiting(self) -> int:
        """Requests that wait for room, of all models."""
        return len(self._waiters)

    def update(self, fleet: Fleet) -> None:
        """A new snapshot: pools come and go, draining engines get nothing more, new ones wait for their probe."""
        self.fleet = fleet
        for model_id in [model_id for model_id in self.pools if model_id not in fleet.models]:
            pool = self.pools.pop(model_id)
            self._refuse_all(pool, refusals.unknown_model)
            pool.update_endpoints(())
        by_model: dict[ModelId, list[Endpoint]] = {}
        for endpoint in sorted(fleet.endpoints.values(), key=lambda endpoint: endpoint.uid):
            by_model.setdefault(endpoint.model, []).append(endpoint)
        for model in fleet.models.values():
            if model.id not in self.pools:
                self.pools[model.id] = ModelPool(model)
                self._weigh(self.pools[model.id], self._weights)
            pool = self.pools[model.id]
            pool.model = model
            pool.update_endpoints(by_model.get(model.id, ()))
            if model.is_suspended:
                self._refuse_all(pool, functools.partial(refusals.suspended, model))
            self.pump(pool)
        self.endpoints.bump()

    def set_weights(self, weights: Mapping[str, int]) -> None:
        """Tenants' shares of a model that has too little room; who is not named has 1."""
        gone = {tenant: 1 for tenant in self._weights if tenant not in weights}
        for pool in self.pools.values():
            self._weigh(pool, {**gone, **weights})
        self._weights = dict(weights)

    def submit(self, job: Job) -> asyncio.Future[Grant]:
        """Asks for a place. The future holds it, or a GatewayError; where there is room it is done at once.

        Whoever stops waiting calls `withdraw`; whoever got a grant calls `release`.
        """
        future: asyncio.Future[Grant] = asyncio.get_running_loop().create_future()
        now = time.monotonic()
        pool = self.pools.get(job.model)
        if pool is None or pool.model.is_suspended:
            future.set_exception(refusals.unknown_model() if pool is None else refusals.suspended(pool.model))
            return future
        is_retry = bool(job.id)
        if not is_retry:
            job.id = str(next(self._ids))
        least_seconds = RETRY_HOLD_SECONDS if is_retry else pool.model.hold.timeout_seconds
        job.hold_until = min(job.deadline, max(job.hold_until, now + least_seconds))
        self._waiters[job.id] = _Waiter(job, future)
        pool.queue.push(
            Ticket(
                request_id=job.id,
                tenant=job.tenant,
                priority=job.priority,
                deadline=job.hold_until,
                enqueued_at=job.arrived,
                work_tokens=job.work_tokens,
            )
        )
        self.pump(pool)
        if not future.done():
            self._hold(pool, job, now)
        return future

    def withdraw(self, job: Job, place_of: asyncio.Future[Grant]) -> None:
        """Nobody waits for `submit`'s answer any more: its client is gone. A grant that just came is given back."""
        waiter = self._waiters.pop(job.id, None)
        if waiter is None:
            if place_of.done() and not place_of.cancelled() and place_of.exception() is None:
                self.release(place_of.result(), cost_tokens=0.0)
            return
        place_of.cancel()
        pool = self.pools[job.model]
        pool.queue.remove(job.id)
        # Who was first in the queue is another one now, perhaps with other needs.
        self.pump(pool)

    def release(self, grant: Grant, *, cost_tokens: float) -> None:
        """The request has left the engine; `cost_tokens` is what it came to."""
        job = grant.job
        pool = self.pools.get(job.model)
        if pool is None:
            return
        uid = grant.endpoint.uid
        pool.book.ended(uid, job.id, time.monotonic())
        pool.queue.charge(job.tenant, cost_tokens - job.work_tokens, priority=job.priority)
        state = pool.states.get(uid)
        if state is not None and state.endpoint.is_draining:
            self.endpoints.bump()
        if pool.queue:
            self.pump(pool)

    def pump(self, pool: ModelPool) -> None:
        """Lets go whoever may: after each arrival, each end, and each news of engines."""
        now = time.monotonic()
        for expired in pool.queue.expire(now):
            self._expire(pool, expired, now)
        routable = pool.routable(now) if pool.queue else []
        while routable and (ticket := pool.queue.first()) is not None:
            waiter = self._waiters[ticket.request_id]
            started = time.perf_counter()
            grant = place(pool, routable, waiter.job, draw=self._draws.random(), now=now)
            self._statistics.decision_seconds.add(time.perf_counter() - started)
            if grant is None:
                break
            pool.queue.pop(now)
            del self._waiters[ticket.request_id]
            waiter.future.set_result(grant)
            # An engine on trial takes one request.
            routable = [state for state in routable if state.circuit.allows(now)]
        self._after_change(pool)

    def refuse_hopeless(self) -> None:
        """The gateway ends: who waits for a model without engines asks another one; others still get their turn."""
        self.is_draining = True
        for pool in self.pools.values():
            if not pool.routable(time.monotonic()):
                self._refuse_all(pool, refusals.gateway_ending)

    def refuse_waiting(self) -> None:
        """The gateway's time is over: nobody waits any more."""
        self.is_draining = True
        for pool in self.pools.values():
            self._refuse_all(pool, refusals.gateway_ending)

    def _hold(self, pool: ModelPool, job: Job, now: float) -> None:
        """It has to wait: within the model's limits, and never while the gateway ends without an engine in sight."""
        has_routable = bool(pool.routable(now))
        if self.is_draining and not has_routable:
            self._refuse(pool, job.id, refusals.gateway_ending())
        elif len(pool.queue) > pool.model.hold.max_requests:
            self._refuse(pool, job.id, refusals.queue_full(pool, now, has_routable=has_routable))
        else:
            pool.statistics.held += 1

    def _expire(self, pool: ModelPool, ticket: Ticket, now: float) -> None:
        waiter = self._waiters.pop(ticket.request_id)
        if now >= waiter.job.deadline:
            waiter.future.set_exception(refusals.deadline_over())
        else:
            has_routable = bool(pool.routable(now))
            waiter.future.set_exception(refusals.held_too_long(pool, now, has_routable=has_routable))

    def _refuse(self, pool: ModelPool, job_id: str, error: GatewayError) -> None:
        pool.queue.remove(job_id)
        waiter = self._waiters.pop(job_id)
        waiter.future.set_exception(error)
        self._after_change(pool)

    def _refuse_all(self, pool: ModelPool, error: Callable[[], GatewayError]) -> None:
        for job_id in [job_id for job_id, waiter in self._waiters.items() if waiter.job.model == pool.model.id]:
            self._refuse(pool, job_id, error())

    def _after_change(self, pool: ModelPool) -> None:
        """Keeps the demand's news, the start's measurement and the deadline's timer true."""
        has_waiting = len(pool.queue) > 0
        if has_waiting != pool.has_demand:
            pool.has_demand = has_waiting
            self.demand.bump()
        if has_waiting or pool.is_measuring_start:
            pool.note_start(has_waiting=has_waiting, now=time.monotonic())
        self._set_timer(pool)

    def _set_timer(self, pool: ModelPool) -> None:
        deadline = pool.queue.next_deadline
        timer = self._timers.get(pool.model.id)
        if timer is not None and deadline is not None and timer.deadline <= deadline:
            # It fires in time, perhaps for nothing: cheaper than another one for each request that goes.
            return
        if timer is not None:
            timer.handle.cancel()
            del self._timers[pool.model.id]
        if deadline is not None:
            delay_seconds = max(0.0, deadline - time.monotonic())
            handle = asyncio.get_running_loop().call_later(delay_seconds, self._on_deadline, pool)
            self._timers[pool.model.id] = _Timer(deadline, handle)

    def _on_deadline(self, pool: ModelPool) -> None:
        self._timers.pop(pool.model.id, None)
        self.pump(pool)

    @staticmethod
    def _weigh(pool: ModelPool, weights: Mapping[str, int]) -> None:
        for tenant, weight in weights.items():
            pool.queue.set_weight(tenant, weight)
