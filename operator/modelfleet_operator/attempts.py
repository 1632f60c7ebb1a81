"""What became of the writes of each child, so that neither a refused nor a contested one is repeated in a hot loop.

PURE: `now` (monotonic seconds) is an argument. Lost on a restart, which costs one more attempt. Must not do I/O.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import orjson

from modelfleet_operator.state import ApplyError, Manifest

# A refused manifest is tried again this often: a quota or a permission may have been repaired, and nothing tells us.
REFUSED_RETRY_SECONDS = 30.0
REFUSED_RETRY_MAXIMUM_SECONDS = 300.0
# The same manifest written this often in a row, each time found different afterwards: somebody writes against us.
CONTESTED_WRITES = 5
CONTESTED_DELAY_SECONDS = 10.0
# A child left in peace for this long is no longer contested.
CONTESTED_MEMORY_SECONDS = 300.0


# A refused child that is due but held back by another one must not make the key ready at once, again and again.
SOONEST_RETRY_SECONDS = 1.0


class ChildKey(NamedTuple):
    """One child of one LLMDeployment."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The latest write of a child: what, how often, when, and when it may be written again unchanged."""

    digest: bytes
    count: int
    at: float
    not_before: float
    error: ApplyError | None = None


class Attempts:
    """The latest attempt per child of one LLMDeployment, for one spec generation."""

    def __init__(self, *, generation: int) -> None:
        self.generation = generation
        self._latest: dict[ChildKey, Attempt] = {}

    @property
    def errors(self) -> tuple[ApplyError, ...]:
        """What the API server refused, ordered by kind and name."""
        return tuple(attempt.error for _, attempt in sorted(self._latest.items()) if attempt.error is not None)

    def may_write(self, manifest: Manifest, *, now: float) -> bool:
        """False where this very manifest was refused or contested a short while ago."""
        attempt = self._latest.get(child_key(manifest))
        return attempt is None or now >= attempt.not_before or attempt.digest != digest_of(manifest)

    def record_success(self, manifest: Manifest, *, now: float) -> None:
        """It was written; told again and again for the same manifest, it has to wait."""
        key, digest = child_key(manifest), digest_of(manifest)
        before = self._latest.get(key)
        is_repeated = (
            before is not None
            and before.error is None
            and before.digest == digest
            and now - before.at < CONTESTED_MEMORY_SECONDS
        )
        count = before.count + 1 if before is not None and is_repeated else 1
        delay = CONTESTED_DELAY_SECONDS if count >= CONTESTED_WRITES else 0.0
        self._latest[key] = Attempt(digest=digest, count=count, at=now, not_before=now + delay)

    def record_error(self, manifest: Manifest, error: ApplyError, *, now: float) -> None:
        """It was refused; the same manifest waits, longer each time."""
        key, digest = child_key(manifest), digest_of(manifest)
        before = self._latest.get(key)
        is_repeated = before is not None and before.error is not None and before.digest == digest
        count = before.count + 1 if before is not None and is_repeated else 1
        delay = min(REFUSED_RETRY_MAXIMUM_SECONDS, REFUSED_RETRY_SECONDS * 2.0 ** (count - 1))
        self._latest[key] = Attempt(digest=digest, count=count, at=now, not_before=now + delay, error=error)

    def keep_only(self, wanted: set[ChildKey]) -> None:
        """Forgets refusals of children that are no longer to be written: they are as wanted, or not wanted at all."""
        for key in [key for key, attempt in self._latest.items() if attempt.error is not None and key not in wanted]:
            del self._latest[key]

    def next_attempt(self, *, now: float) -> float | None:
        """Seconds until the earliest refused child is tried again."""
        waits = [attempt.not_before - now for attempt in self._latest.values() if attempt.error is not None]
        waits += [attempt.not_before - now for attempt in self._latest.values() if attempt.not_before > now]
        return max(SOONEST_RETRY_SECONDS, min(waits)) if waits else None


def child_key(manifest: Manifest) -> ChildKey:
    """Kind and name; the namespace is the LLMDeployment's."""
    return ChildKey(manifest["kind"], manifest["metadata"]["name"])


def digest_of(manifest: Manifest) -> bytes:
    """Equal for equal manifests."""
    return hashlib.blake2b(orjson.dumps(manifest, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()
