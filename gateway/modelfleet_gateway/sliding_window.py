"""How much was used in the last so many seconds, however the time before is cut. PURE."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

# Uses this close to each other leave together: a busy minute is at most 600 entries.
_RESOLUTION_SECONDS = 0.1


@dataclass(slots=True)
class _Use:
    first_at: float
    last_at: float
    amount: float


class SlidingWindow:
    """A sum over the last `seconds`: a use leaves it `seconds` later, or up to 0.1 s after that, never before."""

    def __init__(self, *, seconds: float) -> None:
        self.seconds = seconds
        self._uses: deque[_Use] = deque()
        self._total = 0.0

    def total(self, now: float) -> float:
        """What was used."""
        while self._uses and self._uses[0].last_at + self.seconds <= now:
            self._total -= self._uses.popleft().amount
        if not self._uses:
            self._total = 0.0
        return self._total

    def add(self, now: float, amount: float) -> None:
        """Something was used now."""
        self.total(now)
        newest = self._uses[-1] if self._uses else None
        if newest is not None and now < newest.first_at + _RESOLUTION_SECONDS:
            newest.amount += amount
            newest.last_at = max(newest.last_at, now)
        else:
            self._uses.append(_Use(now, now, amount))
        self._total += amount

    def give_back(self, now: float, amount: float) -> float:
        """Takes up to `amount` out again, of the oldest first: what stays, stays longer. Returns how much it was."""
        taken_out = min(amount, self.total(now))
        left = taken_out
        for use in self._uses:
            part = min(left, use.amount)
            use.amount -= part
            left -= part
            if left <= 0:
                break
        self._total -= taken_out
        return taken_out

    def seconds_until_room(self, now: float, room: float, *, limit: float) -> float:
        """How long until `room` more is within `limit`, if nothing else is used; `seconds` where it never is."""
        excess = self.total(now) + room - limit
        if excess <= 0:
            return 0.0
        for use in self._uses:
            excess -= use.amount
            if excess <= 0:
                return self._left(use, now)
        return self.seconds

    def seconds_until_empty(self, now: float) -> float:
        """How long until all of it has left."""
        self.total(now)
        return self._left(self._uses[-1], now) if self._uses else 0.0

    def _left(self, use: _Use, now: float) -> float:
        # Never more than the window: who asks may have looked at the clock before the last use.
        return min(self.seconds, use.last_at + self.seconds - now)
