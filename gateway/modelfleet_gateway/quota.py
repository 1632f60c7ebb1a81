"""What a tenant may use: requests and tokens of any minute, tokens of the day (UTC), requests at a time. PURE.

Must not know keys or models' state; who shares a quota is `quota_sharing`'s. Each admitted request is settled once
and released once, however it ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from modelfleet_gateway.quota_sharing import Counted, Peers, ReplicaUse, has_room
from modelfleet_gateway.sliding_window import SlidingWindow

MINUTE_SECONDS = 60.0
DAY_SECONDS = 86_400.0
# When to ask again where an answer will end, or another replica will confirm what it heard, at a time nobody knows.
SOON_SECONDS = 1.0

Reason = Literal["requests", "tokens", "daily_tokens", "concurrency"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """A tenant's; None: not limited."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    max_concurrent: int | None = None
    # The lowest number, hence the soonest, that its requests may ask for.
    priority: int = 0
    # Its share where tenants wait for the same model.
    weight: int = 1
    # Enters the hashes of its prompts, so that tenants do not learn of each other's by the time they take.
    salt: str = ""
    # Canonical ids; None: every model.
    allowed_models: frozenset[str] | None = None

    def allows(self, canonical_id: str) -> bool:
        """Whether the tenant may use a model."""
        return self.allowed_models is None or canonical_id in self.allowed_models


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """The request may go; `at` is for `settle`."""

    at: float
    estimated_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The request may not go now. `headers` are for the 429: Retry-After and x-ratelimit-*."""

    reason: Reason
    message: str
    retry_after_seconds: float
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class DayUse:
    """What survives a restart: the day (days since 1970 where the clock says so) and its tokens by replica."""

    day: int = 0
    tokens: Mapping[str, int] = field(default_factory=dict)


class TenantQuota:
    """One tenant's use, in one replica of the gateway.

    `now` may be any clock that does not go back; `unix_offset_seconds` makes Unix time of it, so that days end at
    midnight UTC. `limits` may be replaced at any time: what was used stays counted.
    """

    def __init__(self, limits: Limits, *, replica: str = "only", unix_offset_seconds: float = 0.0) -> None:
        self.limits = limits
        self._unix_offset_seconds = unix_offset_seconds
        self._peers = Peers(replica)
        self._messages = 0
        self._in_flight = 0
        self._reserved_tokens = 0
        self._counted = Counted()
        self._day_use = DayUse()
        # Of all replicas, as far as known, and the part of it that is this one's.
        self._requests = SlidingWindow(seconds=MINUTE_SECONDS)
        self._tokens = SlidingWindow(seconds=MINUTE_SECONDS)
        self._own_requests = SlidingWindow(seconds=MINUTE_SECONDS)
        self._own_tokens = SlidingWindow(seconds=MINUTE_SECONDS)

    def admit(self, now: float, estimated_tokens: int) -> Admitted | Refused:
        """Counts a request that is expected to cost so many tokens, or says why not and when to ask again."""
        refused = self._refused(now, estimated_tokens)
        if refused is not None:
            return refused
        self._in_flight += 1
        self._reserved_tokens += estimated_tokens
        for window, amount in self._windows(requests=1, tokens=estimated_tokens):
            window.add(now, amount)
        self._count(requests=1, tokens=estimated_tokens)
        return Admitted(at=now, estimated_tokens=estimated_tokens)

    def settle(self, now: float, used_tokens: int, estimated_tokens: int, *, admitted_at: float | None = None) -> None:
        """What an admitted request really cost. `admitted_at`: an estimate that left the minute is not given back."""
        self._reserved_tokens -= estimated_tokens
        self._roll_day(now)
        day_tokens = dict(self._day_use.tokens)
        day_tokens[self._peers.replica] = day_tokens.get(self._peers.replica, 0) + used_tokens
        self._day_use = DayUse(day=self._day_use.day, tokens=day_tokens)
        more = used_tokens - estimated_tokens
        if more > 0:
            for window, amount in self._windows(tokens=more):
                window.add(now, amount)
            self._count(tokens=more)
        elif more < 0 and (admitted_at is None or admitted_at + MINUTE_SECONDS > now):
            self._tokens.give_back(now, -more)
            self._count(given_back=int(self._own_tokens.give_back(now, -more)))

    def released(self) -> None:
        """An admitted request ended: it is in flight no more."""
        self._in_flight -= 1

    def headers(self, now: float) -> dict[str, str]:
        """x-ratelimit-* as OpenAI's: `reset` is when all of the limit is there again. None for what is not limited."""
        headers: dict[str, str] = {}
        for kind, limit, window in (
            ("requests", self.limits.requests_per_minute, self._requests),
            ("tokens", self.limits.tokens_per_minute, self._tokens),
        ):
            if limit is not None:
                headers[f"x-ratelimit-limit-{kind}"] = str(limit)
                headers[f"x-ratelimit-remaining-{kind}"] = str(max(0, limit - math.ceil(window.total(now))))
                headers[f"x-ratelimit-reset-{kind}"] = duration_text(window.seconds_until_empty(now))
        return headers

    def checkpoint(self) -> DayUse:
        """What to write down every 30 s; the same for all replicas but for what is still on its way to them."""
        return self._day_use

    def restore(self, saved: DayUse) -> None:
        """Takes in what was written down, by this replica before its restart or by any other."""
        if saved.day > self._day_use.day:
            self._day_use = saved
        elif saved.day == self._day_use.day:
            merged = dict(self._day_use.tokens)
            for replica, tokens in saved.tokens.items():
                merged[replica] = max(tokens, merged.get(replica, 0))
            self._day_use = DayUse(day=saved.day, tokens=merged)

    def share(self, replicas: int) -> None:
        """How many replicas of the gateway there are, this one included: before all are heard of, each has its part."""
        self._peers.expected = max(1, replicas)

    def local_use(self, now: float) -> ReplicaUse:
        """What to tell the other replicas, several times a second while there are requests."""
        self._roll_day(now)
        self._messages += 1
        return ReplicaUse(
            sequence=self._messages,
            counted=self._counted,
            in_last_minute=self._own_last_minute(now),
            in_flight=self._in_flight,
            reserved_tokens=self._reserved_tokens,
            day=self._day_use.day,
            day_tokens=self._day_use.tokens,
            heard=self._peers.heard(),
        )

    def remote_use(self, replica: str, use: ReplicaUse, now: float) -> None:
        """Takes in what another replica told."""
        self._roll_day(now)
        self.restore(DayUse(day=use.day, tokens=use.day_tokens))
        since = self._peers.record(replica, use, now)
        if since.requests:
            self._requests.add(now, since.requests)
        if since.tokens:
            self._tokens.add(now, since.tokens)
        if since.given_back:
            self._tokens.give_back(now, since.given_back)

    def _refused(self, now: float, tokens: int) -> Refused | None:
        self._roll_day(now)
        limits = self.limits
        used_requests, used_tokens = self._requests.total(now), self._tokens.total(now)
        own = self._own_last_minute(now)
        unconfirmed = self._peers.unconfirmed(self._counted, now)
        new_requests, new_tokens = min(unconfirmed.requests, own.requests), min(unconfirmed.tokens, own.tokens)
        in_flight = self._in_flight + self._peers.in_flight(now)
        of_day = sum(self._day_use.tokens.values()) + self._reserved_tokens + self._peers.reserved_tokens(now)
        # What it is of, the limit, what is used of it, the request's cost, what of the use others may not know.
        checks: tuple[tuple[Reason, int | None, float, int, int], ...] = (
            ("concurrency", limits.max_concurrent, in_flight, 1, min(unconfirmed.requests, self._in_flight)),
            ("requests", limits.requests_per_minute, used_requests, 1, new_requests),
            ("tokens", limits.tokens_per_minute, used_tokens, tokens, new_tokens),
            ("daily_tokens", limits.tokens_per_day, of_day, tokens, 0),
        )
        replicas = self._peers.replicas(now)
        for reason, limit, used, cost, unknown in checks:
            # What is admitted while a message is under way is nothing beside a day's tokens: those are not parted.
            parts = 1 if reason == "daily_tokens" else replicas
            if limit is None or has_room(limit=limit, used=used, cost=cost, unconfirmed=unknown, replicas=parts):
                continue
            wait = self._seconds_until(now, reason, cost) if used + cost > limit else SOON_SECONDS
            return self._refusal(now, reason, _message(reason, limit, int(used), cost), wait)
        return None

    def _seconds_until(self, now: float, reason: Reason, cost: int) -> float:
        """When a request of that cost would have room, if nothing else came."""
        if reason == "requests":
            return self._requests.seconds_until_room(now, cost, limit=self.limits.requests_per_minute or 0)
        if reason == "tokens":
            return self._tokens.seconds_until_room(now, cost, limit=self.limits.tokens_per_minute or 0)
        if reason == "daily_tokens":
            return DAY_SECONDS - (now + self._unix_offset_seconds) % DAY_SECONDS
        return SOON_SECONDS

    def _refusal(self, now: float, reason: Reason, message: str, wait: float) -> Refused:
        headers = {"retry-after": str(max(1, math.ceil(wait))), **self.headers(now)}
        return Refused(reason=reason, message=message, retry_after_seconds=wait, headers=headers)

    def _windows(self, *, requests: int = 0, tokens: int = 0) -> tuple[tuple[SlidingWindow, int], ...]:
        """The windows that a use of this replica enters."""
        of_requests = ((self._requests, requests), (self._own_requests, requests)) if requests else ()
        of_tokens = ((self._tokens, tokens), (self._own_tokens, tokens)) if tokens else ()
        return (*of_requests, *of_tokens)

    def _count(self, *, requests: int = 0, tokens: int = 0, given_back: int = 0) -> None:
        self._counted = Counted(
            requests=self._counted.requests + requests,
            tokens=self._counted.tokens + tokens,
            given_back=self._counted.given_back + given_back,
        )

    def _own_last_minute(self, now: float) -> Counted:
        return Counted(requests=int(self._own_requests.total(now)), tokens=int(self._own_tokens.total(now)))

    def _roll_day(self, now: float) -> None:
        day = int((now + self._unix_offset_seconds) // DAY_SECONDS)
        if day > self._day_use.day:
            self._day_use = DayUse(day=day)


def duration_text(seconds: float) -> str:
    """As OpenAI writes a duration: 0s, 12ms, 1.5s, 6m0s, 1h0m0s."""
    milliseconds = math.ceil(round(seconds * 1000, 3))
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:g}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


def _message(reason: Reason, limit: int, used: int, cost: int) -> str:
    if reason == "concurrency":
        return f"at most {limit} requests of this tenant run at a time; now running: {used}"
    if reason == "requests":
        return f"at most {limit} requests a minute for this tenant; used in the last minute: {used}"
    period = "minute" if reason == "tokens" else "day"
    if cost > limit:
        return f"at most {limit} tokens a {period} for this tenant; this request alone needs {cost}"
    return f"at most {limit} tokens a {period} for this tenant; used: {used}, this request needs {cost}"
