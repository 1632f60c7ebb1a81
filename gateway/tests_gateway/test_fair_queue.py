"""Who is next: priority, then the tenant served least for its weight, then deadline, then arrival."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from modelfleet_gateway.fair_queue import FairQueue, Popped, Ticket

_ids = itertools.count()


def ticket(tenant: str = "a", *, name: str = "", work: float = 100.0, at: float = 0.0, **values: object) -> Ticket:
    request_id = name or f"r{next(_ids)}"
    return Ticket(request_id=request_id, tenant=tenant, enqueued_at=at, work_tokens=work, **values)  # type: ignore[arg-type]


def pop_all(queue: FairQueue, *, now: float = 0.0) -> list[str]:
    popped = []
    while (ticket := queue.pop(now).ticket) is not None:
        popped.append(ticket.request_id)
    return popped


def test_an_empty_queue_has_nobody_to_let_through() -> None:
    queue = FairQueue()

    assert queue.pop(5.0) == Popped(ticket=None, expired=())
    assert (len(queue), queue.tokens, queue.first(), queue.next_deadline) == (0, 0.0, None, None)


def test_one_tenant_is_served_in_the_order_of_arrival_where_no_deadline_says_otherwise() -> None:
    queue = FairQueue()
    for name, at, deadline in (("late", 3.0, None), ("early", 1.0, None), ("due", 2.0, 50.0), ("sooner", 4.0, 20.0)):
        queue.push(ticket(name=name, at=at, deadline=deadline))

    assert pop_all(queue) == ["sooner", "due", "early", "late"]


def test_a_lower_priority_number_is_let_through_first_whoever_was_served_less() -> None:
    queue = FairQueue()
    queue.push(ticket("poor", name="batch", priority=10))
    queue.push(ticket("rich", name="chat 1", priority=0, work=1e6))
    queue.push(ticket("rich", name="chat 2", priority=0, at=1.0))
    queue.push(ticket("rich", name="urgent", priority=-5, at=2.0))

    assert pop_all(queue) == ["urgent", "chat 1", "chat 2", "batch"]


def test_tokens_are_shared_by_weight_and_not_requests() -> None:
    queue = FairQueue()
    queue.set_weight("heavy", 3)
    for _ in range(400):
        queue.push(ticket("heavy", work=100))
        queue.push(ticket("light", work=50))

    served: Counter[str] = Counter()
    while sum(served.values()) < 20_000:
        popped = queue.pop(0.0).ticket
        assert popped is not None
        served[popped.tenant] += int(popped.work_tokens)

    assert served == {"heavy": 15_000, "light": 5_000}


def test_a_tenant_that_was_idle_saved_nothing_up() -> None:
    queue = FairQueue()
    for _ in range(50):
        queue.push(ticket("busy"))
    for _ in range(30):
        queue.pop(0.0)
    for _ in range(20):
        queue.push(ticket("idle"))

    next_ten = [popped.tenant for _ in range(10) if (popped := queue.pop(0.0).ticket) is not None]

    assert Counter(next_ten) == {"busy": 5, "idle": 5}


def test_what_a_request_cost_beyond_its_estimate_is_paid_by_its_tenant() -> None:
    queue = FairQueue()
    for _ in range(30):
        queue.push(ticket("a"))
        queue.push(ticket("b"))
    first = queue.pop(0.0).ticket
    assert first is not None
    assert first.tenant == "a"

    queue.charge("a", 400)

    tenants = [popped.tenant for _ in range(7) if (popped := queue.pop(0.0).ticket) is not None]
    assert tenants == ["b", "b", "b", "b", "b", "a", "b"]


def test_what_a_request_cost_less_than_its_estimate_is_given_back() -> None:
    queue = FairQueue()
    queue.push(ticket("a", work=1000))
    for _ in range(5):
        queue.push(ticket("a", at=1.0))
        queue.push(ticket("b"))
    assert queue.pop(0.0).ticket is not None
    queue.pop(0.0)

    queue.charge("a", -900)

    tenants = [popped.tenant for _ in range(4) if (popped := queue.pop(0.0).ticket) is not None]
    assert tenants == ["b", "a", "b", "a"]


def test_a_charge_counts_at_the_priority_of_its_ticket_alone() -> None:
    queue = FairQueue()
    for priority in (0, 9):
        for tenant in ("a", "b"):
            queue.push(ticket(tenant, name=f"{tenant}{priority}", priority=priority))

    queue.charge("a", 500, priority=9)

    assert pop_all(queue) == ["a0", "b0", "b9", "a9"]


def test_a_changed_weight_counts_for_what_is_served_from_then_on() -> None:
    queue = FairQueue()
    for _ in range(40):
        queue.push(ticket("a"))
        queue.push(ticket("b"))
    for _ in range(10):
        queue.pop(0.0)

    queue.set_weight("a", 4)

    served = Counter(popped.tenant for _ in range(20) if (popped := queue.pop(0.0).ticket) is not None)
    assert served == {"a": 16, "b": 4}


def test_a_weight_below_one_is_refused_and_names_the_tenant() -> None:
    with pytest.raises(ValueError, match="the weight of a tenant is at least 1; given for team-a: 0"):
        FairQueue().set_weight("team-a", 0)


def test_who_missed_its_deadline_leaves_with_the_next_pop_and_pays_nothing() -> None:
    queue = FairQueue()
    queue.push(ticket("a", name="missed", deadline=10.0, priority=5))
    queue.push(ticket("a", name="just in time", deadline=10.5))
    queue.push(ticket("b", name="patient"))

    popped = queue.pop(10.0)

    assert [each.request_id for each in popped.expired] == ["missed"]
    assert popped.ticket is not None
    assert popped.ticket.request_id == "just in time"
    assert (len(queue), queue.tokens, queue.next_deadline) == (1, 100.0, None)


def test_a_queue_whose_requests_all_expired_lets_nobody_through() -> None:
    queue = FairQueue()
    queue.push(ticket(name="second", deadline=3.0))
    queue.push(ticket(name="first", deadline=2.0))
    assert queue.next_deadline == 2.0

    popped = queue.pop(9.0)

    assert popped.ticket is None
    assert [each.request_id for each in popped.expired] == ["first", "second"]
    assert (len(queue), queue.tokens) == (0, 0.0)


def test_a_request_whose_client_left_is_taken_out_wherever_it_stands() -> None:
    queue = FairQueue()
    for name in ("first", "second", "third"):
        queue.push(ticket(name=name))

    removed = queue.remove("second")

    assert removed is not None
    assert removed.request_id == "second"
    assert queue.remove("second") is None
    assert "second" not in queue
    assert pop_all(queue) == ["first", "third"]


def test_looking_at_who_is_next_changes_nothing() -> None:
    queue = FairQueue()
    queue.push(ticket(name="only"))

    assert queue.first() == queue.first() == queue.pop(0.0).ticket
    assert queue.first() is None


def test_a_request_can_wait_only_once() -> None:
    queue = FairQueue()
    queue.push(ticket(name="twice"))

    with pytest.raises(ValueError, match="request twice waits already"):
        queue.push(ticket(name="twice"))


def test_free_requests_do_not_keep_the_others_out() -> None:
    queue = FairQueue()
    for _ in range(10):
        queue.push(ticket("free", work=0))
        queue.push(ticket("payer", work=1))

    served = Counter(popped.tenant for _ in range(10) if (popped := queue.pop(0.0).ticket) is not None)

    assert served == {"free": 5, "payer": 5}


def test_what_is_remembered_does_not_grow_with_tenants_and_priorities_that_come_and_go() -> None:
    queue = FairQueue()
    for number in range(5000):
        queue.push(ticket(f"tenant {number}", priority=number % 500, deadline=float(number)))
        queue.pop(0.0)

    assert len(queue._levels) <= 70
    assert max(len(level.accounts) for level in queue._levels.values()) <= 70
    assert len(queue._deadlines._heap) <= 20
