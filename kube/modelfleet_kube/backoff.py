"""How long to wait before trying again: exponential with jitter.

PURE: the random number is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Delays double from `initial_seconds` up to `maximum_seconds`, each shortened by up to half at random."""

    initial_seconds: float = 0.5
    maximum_seconds: float = 60.0

    def delay_seconds(self, attempt: int, *, random_unit: float) -> float:
        """The wait before retry number `attempt` (from 1); `random_unit` in [0, 1)."""
        if attempt < 1:
            raise ValueError(f"attempt counts from 1, given {attempt}")
        # 2**attempt overflows a float long before an operator gives up; 30 doublings are beyond any maximum.
        whole = min(self.maximum_seconds, self.initial_seconds * 2.0 ** min(attempt - 1, 30))
        return whole * (0.5 + 0.5 * random_unit)
