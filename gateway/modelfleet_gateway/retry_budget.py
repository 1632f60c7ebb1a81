"""How many requests may be tried again: a tenth of those that came, so that retries never become the load. PURE."""

from __future__ import annotations

from modelfleet_gateway.sliding_window import SlidingWindow

# Long enough that a pod's end is survived in one go, short enough that yesterday's calm pays for nothing.
WINDOW_SECONDS = 10.0


class RetryBudget:
    """Over any 10 s at most `minimum_per_second` retries a second and `fraction` of the requests besides."""

    def __init__(self, fraction: float = 0.1, minimum_per_second: float = 1) -> None:
        self._fraction = fraction
        self._free_retries = minimum_per_second * WINDOW_SECONDS
        self._requests = SlidingWindow(seconds=WINDOW_SECONDS)
        self._retries = SlidingWindow(seconds=WINDOW_SECONDS)

    def request(self, now: float) -> None:
        """A request came (a retry of one is none)."""
        self._requests.add(now, 1)

    def try_spend(self, now: float) -> bool:
        """Takes one retry from the budget; False if there is none left."""
        allowed = self._free_retries + self._fraction * self._requests.total(now)
        if self._retries.total(now) + 1 > allowed:
            return False
        self._retries.add(now, 1)
        return True
