"""The progress deadline: is a replica of the wanted revision overdue, and when will the next one be? PURE.

The Deployment's own clock stops for good once the Deployment was complete, even at zero replicas; so a replica is
overdue when it has not been ready for the whole deadline, counted from its creation or from when it was last ready.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from modelfleet_operator.fleet_view import FleetView

# Timestamps have whole seconds: looking a little later sees the deadline passed.
MARGIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """`next_check_seconds` is until the first replica is overdue, None where time changes nothing."""

    is_exceeded: bool
    next_check_seconds: float | None = None


def deadline_state(view: FleetView, *, target_hash: str, limit_seconds: int, now: datetime) -> Deadline:
    """Where the wanted revision stands; the pods of other revisions do not count."""
    if target_hash in view.stalled:
        return Deadline(is_exceeded=True)
    waits = [
        (now - datetime.fromisoformat(pod.unready_since)).total_seconds()
        for pod in view.pods
        if pod.revision_hash == target_hash and not pod.is_ready and pod.unready_since
    ]
    if not waits:
        return Deadline(is_exceeded=False)
    left = limit_seconds - max(waits)
    if left <= 0:
        return Deadline(is_exceeded=True)
    return Deadline(is_exceeded=False, next_check_seconds=left + MARGIN_SECONDS)
