"""How the replicas of the gateway share a tenant's quota by gossip, and are not overdrawn by its delay. PURE.

A replica may use, beyond what every other replica has confirmed to know of, only its part of what was left: with that
their sum stays within the limit however late messages are. `TOLERATED_OVERSHOOT` of a limit is given up on purpose,
so that the last few requests are not refused by everybody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

TOLERATED_OVERSHOOT = 0.05
# Who says nothing for this long is not waited for: it is gone, or cut off and with it its clients.
SILENCE_SECONDS = 5.0
# The minute that limits speak of: whatever a replica told before that has left it.
_FORGOTTEN_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What a replica counted since it started: all three only grow.

    `tokens` are estimates and what they were too low by; `given_back` is what they were too high by.
    """

    requests: int = 0
    tokens: int = 0
    given_back: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaUse:
    """What one replica tells the others of one tenant; sent whole each time, so a lost message costs nothing."""

    # Grows with each message: an older one that arrives later is ignored.
    sequence: int
    counted: Counted
    # What is left of it in the last minute: what a replica that just started has to know.
    in_last_minute: Counted
    in_flight: int = 0
    # What is expected of those in flight and not yet in `day_tokens`.
    reserved_tokens: int = 0
    day: int = 0
    # Tokens of the day by replica, also of those that are gone.
    day_tokens: Mapping[str, int] = field(default_factory=dict)
    # What the sender has heard from the others: the confirmation that they wait for.
    heard: Mapping[str, Counted] = field(default_factory=dict)


@dataclass(slots=True)
class _Peer:
    use: ReplicaUse
    heard_at: float


class Peers:
    """What one replica knows of the others. `replica` names a process, not a pod: a restarted one counts anew."""

    def __init__(self, replica: str) -> None:
        self.replica = replica
        # How many replicas there are, this one included, as far as the shell knows; more may be heard of.
        self.expected = 1
        self._peers: dict[str, _Peer] = {}

    def record(self, replica: str, use: ReplicaUse, now: float) -> Counted:
        """Takes a message in; returns what it used since the last one (of a new replica: in the last minute)."""
        self._peers = {name: peer for name, peer in self._peers.items() if now - peer.heard_at < _FORGOTTEN_SECONDS}
        known = self._peers.get(replica)
        if replica == self.replica or (known is not None and use.sequence <= known.use.sequence):
            return Counted()
        self._peers[replica] = _Peer(use, now)
        if known is None:
            return use.in_last_minute
        before = known.use.counted
        return Counted(
            requests=use.counted.requests - before.requests,
            tokens=use.counted.tokens - before.tokens,
            given_back=use.counted.given_back - before.given_back,
        )

    def replicas(self, now: float) -> int:
        """How many share the quota, this one included."""
        return max(1 + len(self._live(now)), self.expected)

    def unconfirmed(self, counted: Counted, now: float) -> Counted:
        """What of this replica's use somebody may not know of yet; zero where it is alone."""
        live = self._live(now)
        if 1 + len(live) < self.expected:
            return counted
        heard = [peer.use.heard.get(self.replica, Counted()) for peer in live]
        return Counted(
            requests=max((counted.requests - each.requests for each in heard), default=0),
            tokens=max((counted.tokens - each.tokens for each in heard), default=0),
        )

    def in_flight(self, now: float) -> int:
        """What the others have in flight."""
        return sum(peer.use.in_flight for peer in self._at_work(now))

    def reserved_tokens(self, now: float) -> int:
        """What is expected of what the others have in flight."""
        return sum(peer.use.reserved_tokens for peer in self._at_work(now))

    def heard(self) -> dict[str, Counted]:
        """What to confirm to the others."""
        return {name: peer.use.counted for name, peer in self._peers.items()}

    def _live(self, now: float) -> list[_Peer]:
        return [peer for peer in self._peers.values() if now - peer.heard_at < SILENCE_SECONDS]

    def _at_work(self, now: float) -> list[_Peer]:
        """Whose requests still run. While somebody expected is missing, who fell silent may only be cut off."""
        live = self._live(now)
        if 1 + len(live) >= self.expected:
            return live
        return [peer for peer in self._peers.values() if now - peer.heard_at < _FORGOTTEN_SECONDS]


def has_room(*, limit: float, used: float, cost: float, unconfirmed: float, replicas: int) -> bool:
    """Whether `cost` more is within the limit, and within this replica's part of what it may use unconfirmed."""
    if used + cost > limit:
        return False
    free_for_all = limit - used + unconfirmed
    tolerated = min(free_for_all, TOLERATED_OVERSHOOT * limit / replicas)
    return unconfirmed + cost <= max(free_for_all / replicas, tolerated)
