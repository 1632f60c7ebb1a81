"""Whether an engine may be sent requests: off after failures, tried with one request, then warmed up slowly. PURE."""

from __future__ import annotations

from enum import StrEnum

FAILURES_TO_OPEN = 3
FIRST_OPEN_SECONDS = 1.0
LONGEST_OPEN_SECONDS = 30.0
SLOW_START_SECONDS = 10.0
# The share of its normal load that an engine gets just after it came back.
SLOW_START_FLOOR = 0.1
# A probe that ends neither way (its client left) does not keep the circuit shut for longer than this.
PROBE_SECONDS = 30.0


class CircuitState(StrEnum):
    """As metrics name it."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Circuit:
    """One engine's. Only failures in a row count; a draining engine's refusals are no failures (do not report them).

    Open for 1 s, then one probe: if it fails, open for twice as long, up to 30 s. The doubling is forgotten once
    an engine has been well through its slow start.
    """

    def __init__(self) -> None:
        self._state = CircuitState.CLOSED
        self._failures = 0
        self._open_seconds = FIRST_OPEN_SECONDS
        self._open_until = 0.0
        self._probe_until = 0.0
        self._closed_at: float | None = None

    @property
    def state(self) -> CircuitState:
        """As of the last event; an open one whose time is over is half open once its probe is sent."""
        return self._state

    def allows(self, now: float) -> bool:
        """Whether a request may go there. Only asks: tell `began` of the one that goes."""
        if self._state is CircuitState.OPEN:
            return now >= self._open_until
        if self._state is CircuitState.HALF_OPEN:
            return now >= self._probe_until
        return True

    def began(self, now: float) -> None:
        """A request was sent; where the circuit is not closed it is the probe, and there is no other beside it."""
        if self._state is not CircuitState.CLOSED and self.allows(now):
            self._state = CircuitState.HALF_OPEN
            self._probe_until = now + PROBE_SECONDS

    def succeeded(self, now: float) -> None:
        """The engine answered a request."""
        self._failures = 0
        self.probed(now)

    def probed(self, now: float) -> None:
        """The engine answered an active probe, which closes it too; failures of requests in between still count.

        Probes come every second: if they counted as answers, an engine that breaks every request would get them all
        as long as no three of them fall between two probes.
        """
        if self._state is CircuitState.CLOSED:
            return
        # The answer to a request from before it opened says nothing new.
        if self._state is CircuitState.OPEN and now < self._open_until:
            return
        self._state = CircuitState.CLOSED
        self._closed_at = now

    def failed(self, now: float) -> None:
        """The engine refused the connection, broke it, or answered as a broken engine does."""
        if self._state is CircuitState.CLOSED:
            self._failures += 1
            if self._failures >= FAILURES_TO_OPEN:
                self._open(now)
        elif self._state is CircuitState.HALF_OPEN or now >= self._open_until:
            self._open(now)

    def slow_start(self, now: float) -> float:
        """The share of its normal load that the engine should get: (0, 1]."""
        if self._state is not CircuitState.CLOSED:
            return SLOW_START_FLOOR
        if self._closed_at is None:
            return 1.0
        passed = max(0.0, now - self._closed_at) / SLOW_START_SECONDS
        return min(1.0, SLOW_START_FLOOR + (1.0 - SLOW_START_FLOOR) * passed)

    def _open(self, now: float) -> None:
        is_relapse = self._state is not CircuitState.CLOSED or self.slow_start(now) < 1.0
        self._open_seconds = min(2 * self._open_seconds, LONGEST_OPEN_SECONDS) if is_relapse else FIRST_OPEN_SECONDS
        self._open_until = now + self._open_seconds
        self._state = CircuitState.OPEN
        self._failures = 0
