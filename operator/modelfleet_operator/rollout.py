"""How many replicas each live revision gets now: surge one, never below what serves. PURE and stateless.

Derived from observed replicas alone, so an operator that restarts in the middle continues where it is.

With N wanted replicas, the new revision gets one more than it has ready (surge 1), and the old ones keep what the
new one does not yet serve:  old = min(N - new_ready, N + 1 - new).  Hence old + new <= N + 1, and a new revision
that never gets ready leaves N old replicas serving, also when N changes meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRevision:
    """A revision with a Deployment. `replicas` is what its Deployment asks for, `ready` counts routable pods."""

    hash: str
    number: int
    replicas: int
    ready: int

    @property
    def lasting(self) -> int:
        """Ready pods that its Deployment is not about to remove."""
        return min(self.ready, self.replicas)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutStep:
    """Replicas per revision hash for this pass; `is_complete` when only the new revision is left, all of it ready."""

    replicas: Mapping[str, int]
    is_complete: bool


def next_step(*, desired: int, target_hash: str, live: Sequence[LiveRevision], current_hash: str | None) -> RolloutStep:
    """The replicas each revision should have now.

    `current_hash` is the revision that last served in full (status.currentRevision); it is kept even while all of
    its pods are down for a moment. Any other old revision without a ready pod serves nothing and goes at once.
    """
    new = next((item for item in live if item.hash == target_hash), None)
    new_replicas, new_ready = (new.replicas, new.lasting) if new is not None else (0, 0)
    olds = [item for item in live if item.hash != target_hash]
    serving = [item for item in olds if item.replicas > 0 and (item.ready > 0 or item.hash == current_hash)]
    if serving and desired > 0:
        # Of the new revision's unready replicas only as many as leave room for the old ones that serve.
        needed_old = min(sum(item.lasting for item in serving), desired - min(new_ready, desired))
        new_target = min(desired, max(new_replicas, new_ready + 1), desired + 1 - needed_old)
        old_total = max(0, min(desired - new_ready, desired + 1 - new_target))
    else:
        new_target, old_total = desired, 0
    replicas = {item.hash: 0 for item in olds} | _share(serving, total=old_total, current_hash=current_hash)
    replicas[target_hash] = new_target
    is_complete = new_target == desired and new_ready >= desired and all(item.replicas == 0 for item in olds)
    return RolloutStep(replicas=replicas, is_complete=is_complete)


def _share(serving: Sequence[LiveRevision], *, total: int, current_hash: str | None) -> dict[str, int]:
    """Splits `total` among the serving old revisions: what is ready stays first, then the current one; it may grow."""
    ordered = sorted(serving, key=lambda item: (item.hash != current_hash, -item.ready, -item.number))
    shares = {item.hash: 0 for item in ordered}
    left = total
    for limits in ({item.hash: item.lasting for item in ordered}, {item.hash: item.replicas for item in ordered}):
        for revision_hash, limit in limits.items():
            more = min(limit - shares[revision_hash], left)
            shares[revision_hash] += more
            left -= more
    if left and ordered:
        shares[ordered[0].hash] += left
    return shares
