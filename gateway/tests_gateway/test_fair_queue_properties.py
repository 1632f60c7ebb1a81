"""Any interleaving of pushes, pops, departures, charges and weights: nobody is lost, and the order is the promised one.

Beside it a simulation: whatever the tenants' sizes and however wrong the estimates, what they are served over any
30 saturated seconds is within 10 % of their weights.
"""

from __future__ import annotations

import heapq
import random
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from modelfleet_gateway.fair_queue import FairQueue, Ticket

TENANTS = ("a", "b", "c")
_tenants = st.sampled_from(TENANTS)


class Waiting(RuleBasedStateMachine):
    """The queue beside a list of who waits."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = FairQueue()
        self.waiting: dict[str, Ticket] = {}
        self.pushed = 0
        self.now = 0.0

    @rule(
        tenant=_tenants, priority=st.integers(-1, 1), patience=st.none() | st.integers(1, 20), work=st.integers(0, 50)
    )
    def push(self, tenant: str, priority: int, patience: int | None, work: int) -> None:
        self.pushed += 1
        ticket = Ticket(
            request_id=f"r{self.pushed}",
            tenant=tenant,
            priority=priority,
            deadline=None if patience is None else self.now + patience,
            enqueued_at=self.now,
            work_tokens=work,
        )
        self.queue.push(ticket)
        self.waiting[ticket.request_id] = ticket

    @rule()
    def pop(self) -> None:
        popped = self.queue.pop(self.now)
        missed = [t for t in self.waiting.values() if t.deadline is not None and t.deadline <= self.now]
        assert sorted(t.request_id for t in popped.expired) == sorted(t.request_id for t in missed)
        for ticket in missed:
            del self.waiting[ticket.request_id]
        if popped.ticket is None:
            assert self.waiting == {}
            return
        chosen = self.waiting.pop(popped.ticket.request_id)
        assert chosen == popped.ticket
        assert all(chosen.priority <= other.priority for other in self.waiting.values())
        beside = [t for t in self.waiting.values() if (t.tenant, t.priority) == (chosen.tenant, chosen.priority)]
        assert all(_urgency(chosen) <= _urgency(other) for other in beside)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def client_leaves(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.waiting)))
        assert self.queue.remove(request_id) == self.waiting.pop(request_id)
        assert self.queue.remove(request_id) is None

    @rule(tenant=_tenants, tokens=st.integers(-50, 200), priority=st.integers(-1, 1))
    def charge(self, tenant: str, tokens: int, priority: int) -> None:
        self.queue.charge(tenant, tokens, priority=priority)

    @rule(tenant=_tenants, weight=st.integers(1, 5))
    def set_weight(self, tenant: str, weight: int) -> None:
        self.queue.set_weight(tenant, weight)

    @rule(seconds=st.integers(1, 10))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def it_holds_exactly_who_waits(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert self.queue.tokens == sum(t.work_tokens for t in self.waiting.values())
        assert all(request_id in self.queue for request_id in self.waiting)
        deadlines = [t.deadline for t in self.waiting.values() if t.deadline is not None]
        assert self.queue.next_deadline == min(deadlines, default=None)
        assert (self.queue.first() is None) == (not self.waiting)


def _urgency(ticket: Ticket) -> tuple[float, float]:
    return (float("inf") if ticket.deadline is None else ticket.deadline, ticket.enqueued_at)


TestWaiting = Waiting.TestCase
TestWaiting.settings = settings(max_examples=60, stateful_step_count=50, deadline=None, derandomize=True, database=None)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    weights=st.fixed_dictionaries({tenant: st.integers(1, 8) for tenant in TENANTS}),
    sizes=st.lists(st.tuples(_tenants, st.integers(1, 500)), min_size=30, max_size=200),
)
def test_while_two_tenants_wait_their_shares_differ_by_at_most_one_request_of_each(
    weights: dict[str, int], sizes: list[tuple[str, int]]
) -> None:
    queue = FairQueue()
    largest = dict.fromkeys(TENANTS, 0)
    left = dict.fromkeys(TENANTS, 0)
    for number, (tenant, size) in enumerate(sizes):
        queue.push(Ticket(request_id=str(number), tenant=tenant, enqueued_at=number, work_tokens=size))
        largest[tenant] = max(largest[tenant], size)
        left[tenant] += 1
    for tenant, weight in weights.items():
        queue.set_weight(tenant, weight)

    served = dict.fromkeys(TENANTS, 0.0)
    while (ticket := queue.pop(0.0).ticket) is not None:
        backlogged = [tenant for tenant in TENANTS if left[tenant]]
        served[ticket.tenant] += ticket.work_tokens / weights[ticket.tenant]
        left[ticket.tenant] -= 1
        for one in backlogged:
            for other in backlogged:
                bound = largest[one] / weights[one] + largest[other] / weights[other]
                assert abs(served[one] - served[other]) <= bound + 1e-6


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(polls=st.lists(_tenants, min_size=1, max_size=30), weight=st.integers(1, 8))
def test_nobody_who_waits_is_passed_over_for_ever(polls: list[str], weight: int) -> None:
    """However many requests the others bring, and whatever they were charged before, a request comes to its turn."""
    queue = FairQueue()
    queue.set_weight("b", weight)
    queue.push(Ticket(request_id="patient", tenant="a", enqueued_at=0, work_tokens=100))
    for turn in range(3 * weight + 6):
        for number, tenant in enumerate(polls):
            if tenant != "a":
                queue.push(Ticket(request_id=f"{turn}.{number}", tenant=tenant, enqueued_at=turn, work_tokens=100))
        ticket = queue.pop(0.0).ticket
        if ticket is not None and ticket.request_id == "patient":
            return
    raise AssertionError("the request of a waits behind others without end")


def simulate(
    *, weights: dict[str, int], tokens: dict[str, int], misjudged: dict[str, float], seconds: float, seed: int
) -> list[dict[str, float]]:
    """Tokens that each tenant was served in each 30 s: 32 slots, each 300 tokens a second, always a queue.

    `tokens` are the mean true cost of a tenant's requests, exponentially spread; estimates are off by `misjudged`.
    """
    draws = random.Random(seed)
    queue = FairQueue()
    windows: list[dict[str, float]] = [defaultdict(float) for _ in range(int(seconds / 30) + 1)]
    true_cost: dict[str, float] = {}
    running: list[tuple[float, str]] = []
    tickets: dict[str, Ticket] = {}

    def refill(tenant: str, now: float) -> None:
        name = f"{tenant}{len(true_cost)}"
        true_cost[name] = draws.expovariate(1.0) * tokens[tenant] + 1
        work = tokens[tenant] * misjudged[tenant]
        queue.push(Ticket(request_id=name, tenant=tenant, enqueued_at=now, work_tokens=work))

    for tenant, weight in weights.items():
        queue.set_weight(tenant, weight)
        for _ in range(64):
            refill(tenant, 0.0)
    now = 0.0
    while now < seconds:
        while len(running) < 32:
            ticket = queue.pop(now).ticket
            assert ticket is not None
            tickets[ticket.request_id] = ticket
            duration = true_cost[ticket.request_id] / 300
            for step in range(int(duration / 0.1) + 1):
                part = min(0.1, duration - 0.1 * step)
                windows[min(int((now + 0.1 * step) / 30), len(windows) - 1)][ticket.tenant] += part * 300
            heapq.heappush(running, (now + duration, ticket.request_id))
            refill(ticket.tenant, now)
        now, name = heapq.heappop(running)
        queue.charge(tickets[name].tenant, true_cost[name] - tickets[name].work_tokens)
    return windows[:-1]


@pytest.mark.parametrize(
    ("weights", "tokens", "misjudged"),
    [
        ({"a": 1, "b": 1}, {"a": 400, "b": 400}, {"a": 1.0, "b": 1.0}),
        ({"a": 1, "b": 3}, {"a": 800, "b": 100}, {"a": 1.0, "b": 1.0}),
        ({"a": 1, "b": 2, "c": 5}, {"a": 300, "b": 600, "c": 150}, {"a": 1.0, "b": 1.2, "c": 0.8}),
        ({"a": 1, "b": 1}, {"a": 400, "b": 400}, {"a": 0.5, "b": 2.0}),
    ],
    ids=["equal", "weighted", "three", "misjudged"],
)
def test_served_tokens_are_within_a_tenth_of_the_weights_over_each_30_saturated_seconds(
    weights: dict[str, int], tokens: dict[str, int], misjudged: dict[str, float]
) -> None:
    windows = simulate(weights=weights, tokens=tokens, misjudged=misjudged, seconds=240, seed=5)

    assert len(windows) == 8
    for window in windows:
        of_all = sum(window.values())
        for tenant, weight in weights.items():
            due = weight / sum(weights.values())
            assert abs(window[tenant] / of_all / due - 1) <= 0.1, (tenant, dict(window))
