"""The requests that wait for room, in the order in which they get it. PURE.

Three questions in turn: whose `priority` number is lowest; of those, which tenant has been served least for its weight;
of its requests, which must be done soonest. Must not know what a pod is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from modelfleet_gateway.lazy_heap import LazyHeap

# What is remembered of tenants and priorities that have nothing waiting, before it is tidied away.
_IDLE_KEPT = 64
# A request costs something, whatever was estimated: else a tenant of empty requests is always next.
_LEAST_WORK_TOKENS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """One waiting request. `deadline` and `enqueued_at` are seconds on the clock of `FairQueue.pop`."""

    request_id: str
    tenant: str
    # Lower is sooner; clamped to what the tenant may ask for by whoever makes the ticket.
    priority: int = 0
    deadline: float | None = None
    enqueued_at: float
    # What the request is expected to cost: prompt and answer.
    work_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Popped:
    """Who is next (None: nobody waits), and those whose deadline has passed: they are no longer in the queue."""

    ticket: Ticket | None
    expired: tuple[Ticket, ...] = ()


@dataclass(slots=True)
class _Account:
    """One tenant at one priority: what it was served, divided by its weight, and its waiting requests."""

    served: float
    tickets: LazyHeap[str] = field(default_factory=LazyHeap)


class _Level:
    """All tenants of one priority: start-time fair queueing (Goyal, Vin and Cheng, 1996).

    `clock` is the account of whoever was last let through, before it paid. Who comes back from idleness starts there
    at least: it saved nothing up. Over any time in which two tenants wait, what they are served, divided by their
    weights, differs by at most one request of each.
    """

    def __init__(self) -> None:
        self.clock = 0.0
        self.accounts: dict[str, _Account] = {}
        self.waiting: LazyHeap[str] = LazyHeap()

    def account(self, tenant: str) -> _Account:
        """The tenant's account; a new one starts at the clock."""
        found = self.accounts.get(tenant)
        if found is None:
            self._tidy()
            found = self.accounts[tenant] = _Account(self.clock)
        return found

    def push(self, ticket: Ticket) -> None:
        account = self.account(ticket.tenant)
        if not account.tickets:
            account.served = max(account.served, self.clock)
            self.waiting.put(ticket.tenant, key=(account.served,))
        deadline = math.inf if ticket.deadline is None else ticket.deadline
        account.tickets.put(ticket.request_id, key=(deadline, ticket.enqueued_at))

    def first(self) -> str | None:
        """The request that is next at this priority."""
        tenant = self.waiting.first()
        return None if tenant is None else self.accounts[tenant].tickets.first()

    def discard(self, ticket: Ticket) -> None:
        account = self.accounts[ticket.tenant]
        account.tickets.discard(ticket.request_id)
        if not account.tickets:
            self.waiting.discard(ticket.tenant)

    def charge(self, tenant: str, share: float) -> None:
        account = self.account(tenant)
        account.served += share
        if account.tickets:
            self.waiting.put(tenant, key=(account.served,))

    def _tidy(self) -> None:
        """Forgets who has nothing waiting and no debt: its account would start at the clock in any case."""
        if len(self.accounts) < 2 * len(self.waiting) + _IDLE_KEPT:
            return
        self.accounts = {
            tenant: account
            for tenant, account in self.accounts.items()
            if account.tickets or account.served > self.clock
        }


class FairQueue:
    """Waiting requests by priority, then fair between tenants by served tokens, then deadline, then arrival.

    Every request goes through it, also when there is room: `pop` charges the tenant what the ticket was expected to
    cost, and `charge` adds what the request turned out to cost more (less: negative). All operations are O(log n).
    """

    def __init__(self) -> None:
        self._tickets: dict[str, Ticket] = {}
        self._deadlines: LazyHeap[str] = LazyHeap()
        self._levels: dict[int, _Level] = {}
        self._priorities: LazyHeap[int] = LazyHeap()
        self._weights: dict[str, int] = {}
        self._tokens = 0.0

    def __len__(self) -> int:
        return len(self._tickets)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._tickets

    @property
    def tokens(self) -> float:
        """The expected cost of all that waits."""
        return self._tokens

    @property
    def next_deadline(self) -> float | None:
        """When the first waiting request expires; None if none of them ever does."""
        key = self._deadlines.first_key()
        return None if key is None else key[0]

    def set_weight(self, tenant: str, weight: int) -> None:
        """The tenant's share among those that wait, from now on; 1 unless set. Raises ValueError below 1."""
        if weight < 1:
            raise ValueError(f"the weight of a tenant is at least 1; given for {tenant}: {weight}")
        if weight == 1:
            self._weights.pop(tenant, None)
        else:
            self._weights[tenant] = weight

    def push(self, ticket: Ticket) -> None:
        """Adds a request. Raises ValueError if one with its id waits already."""
        if ticket.request_id in self._tickets:
            raise ValueError(f"request {ticket.request_id} waits already")
        level = self._level(ticket.priority)
        if not level.waiting:
            self._priorities.put(ticket.priority, key=(ticket.priority,))
        level.push(ticket)
        self._tickets[ticket.request_id] = ticket
        if ticket.deadline is not None:
            self._deadlines.put(ticket.request_id, key=(ticket.deadline,))
        self._tokens += ticket.work_tokens

    def first(self) -> Ticket | None:
        """Who would be next, left where it is; its deadline may have passed."""
        priority = self._priorities.first()
        request_id = None if priority is None else self._levels[priority].first()
        return None if request_id is None else self._tickets[request_id]

    def pop(self, now: float) -> Popped:
        """Takes out whoever is next, and all whose deadline has passed."""
        expired = self.expire(now)
        ticket = self.first()
        if ticket is None:
            return Popped(ticket=None, expired=expired)
        level = self._levels[ticket.priority]
        level.clock = max(level.clock, level.accounts[ticket.tenant].served)
        self._take(ticket)
        self.charge(ticket.tenant, max(ticket.work_tokens, _LEAST_WORK_TOKENS), priority=ticket.priority)
        return Popped(ticket=ticket, expired=expired)

    def expire(self, now: float) -> tuple[Ticket, ...]:
        """Takes out all whose deadline has passed, the earliest first; they cost their tenants nothing."""
        expired: list[Ticket] = []
        while (deadline := self.next_deadline) is not None and deadline <= now:
            request_id = self._deadlines.first()
            assert request_id is not None
            ticket = self._tickets[request_id]
            self._take(ticket)
            expired.append(ticket)
        return tuple(expired)

    def remove(self, request_id: str) -> Ticket | None:
        """Takes one request out, wherever it stands: its client is gone. None if it does not wait."""
        ticket = self._tickets.get(request_id)
        if ticket is not None:
            self._take(ticket)
        return ticket

    def charge(self, tenant: str, tokens: float, *, priority: int = 0) -> None:
        """What a popped ticket of that priority cost beyond its `work_tokens`; negative where it cost less."""
        level = self._levels.get(priority)
        if level is not None:
            level.charge(tenant, tokens / self._weights.get(tenant, 1))

    def _level(self, priority: int) -> _Level:
        found = self._levels.get(priority)
        if found is None:
            # Users choose priorities: what is remembered of empty ones must not grow with their imagination.
            if len(self._levels) >= 2 * len(self._priorities) + _IDLE_KEPT:
                self._levels = {number: level for number, level in self._levels.items() if level.waiting}
            found = self._levels[priority] = _Level()
        return found

    def _take(self, ticket: Ticket) -> None:
        level = self._levels[ticket.priority]
        level.discard(ticket)
        if not level.waiting:
            self._priorities.discard(ticket.priority)
        self._deadlines.discard(ticket.request_id)
        del self._tickets[ticket.request_id]
        self._tokens = self._tokens - ticket.work_tokens if self._tickets else 0.0
