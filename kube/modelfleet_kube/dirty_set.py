"""The set of keys that need a pass: each at most once, one worker per key, urgent ones first, failed ones later.

`DirtyKeys` is PURE (time and randomness are arguments); `DirtySet` lets asynchronous workers wait on it.
Must not know what a pass does.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Hashable
from enum import IntEnum
from typing import Generic, TypeVar

from modelfleet_kube.backoff import Backoff

K = TypeVar("K", bound=Hashable)


class Priority(IntEnum):
    """Lower goes first. Measured: keys that already have children first halves the median time to Ready."""

    STARTED = 0
    NEW = 1


class DirtyKeys(Generic[K]):
    """The bookkeeping. A key is ready, delayed, active (a worker has it), or active and dirty again."""

    def __init__(self, *, backoff: Backoff) -> None:
        self._backoff = backoff
        # dicts keep insertion order: first come, first served within one priority.
        self._ready: dict[Priority, dict[K, None]] = {priority: {} for priority in Priority}
        self._due: dict[K, tuple[float, Priority]] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._sequence = 0
        self._active: dict[K, Priority | None] = {}
        self._failures: dict[K, int] = {}

    def __len__(self) -> int:
        """Keys waiting for a worker now; delayed and active ones not counted."""
        return sum(len(keys) for keys in self._ready.values())

    @property
    def delayed_count(self) -> int:
        """Keys waiting for their time."""
        return len(self._due)

    def add(self, key: K, *, priority: Priority) -> None:
        """Marks it dirty: a pass as soon as a worker is free, and after the one under way, if any."""
        if key in self._active:
            again = self._active[key]
            self._active[key] = priority if again is None else min(again, priority)
            return
        if priority < Priority.NEW:
            self._ready[Priority.NEW].pop(key, None)
        elif key in self._ready[Priority.STARTED]:
            return
        self._ready[priority].setdefault(key)

    def add_at(self, key: K, *, due: float, priority: Priority) -> None:
        """Marks it dirty from `due` on; the earlier of two times stays. A pass before that cancels it."""
        planned = self._due.get(key)
        if planned is not None and planned[0] <= due:
            return
        self._due[key] = (due, priority)
        self._sequence += 1
        heapq.heappush(self._heap, (due, self._sequence, key))

    def take(self, *, now: float) -> K | None:
        """The next key, now active; None where there is none yet (see `next_due`)."""
        self._wake_due(now=now)
        for keys in self._ready.values():
            if keys:
                key = next(iter(keys))
                del keys[key]
                self._due.pop(key, None)
                self._active[key] = None
                return key
        return None

    def next_due(self) -> float | None:
        """When the earliest delayed key comes up."""
        while self._heap and not self._is_current(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def done(self, key: K) -> None:
        """The worker has finished with it; what was marked meanwhile becomes ready."""
        again = self._active.pop(key)
        if again is not None:
            self.add(key, priority=again)

    def fail(self, key: K, *, now: float, random_unit: float, at_least_seconds: float = 0.0) -> float:
        """Marks it for a retry after its own back-off, at least `at_least_seconds`; returns the delay."""
        attempt = self._failures.get(key, 0) + 1
        self._failures[key] = attempt
        delay = max(at_least_seconds, self._backoff.delay_seconds(attempt, random_unit=random_unit))
        self.add_at(key, due=now + delay, priority=Priority.NEW)
        return delay

    def succeed(self, key: K) -> None:
        """Resets the back-off."""
        self._failures.pop(key, None)

    def _wake_due(self, *, now: float) -> None:
        while self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)
            if self._is_current(entry):
                _, priority = self._due.pop(entry[2])
                self.add(entry[2], priority=priority)

    def _is_current(self, entry: tuple[float, int, K]) -> bool:
        planned = self._due.get(entry[2])
        return planned is not None and planned[0] == entry[0]


class DirtySet(Generic[K]):
    """`DirtyKeys` for workers: `take` waits. One event loop only."""

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        random_unit: Callable[[], float],
        backoff: Backoff | None = None,
    ) -> None:
        self._clock = clock
        self._random_unit = random_unit
        self._keys: DirtyKeys[K] = DirtyKeys(backoff=backoff or Backoff())
        self._waiters: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def delayed_count(self) -> int:
        """Keys waiting for their time."""
        return self._keys.delayed_count

    def add(self, key: K, *, priority: Priority = Priority.STARTED, delay_seconds: float = 0.0) -> None:
        """Marks it dirty, now or after a delay."""
        if delay_seconds > 0:
            self._keys.add_at(key, due=self._clock() + delay_seconds, priority=priority)
        else:
            self._keys.add(key, priority=priority)
        self._wake_one()

    async def take(self) -> K:
        """Waits for the next key, which is then this worker's until `done`."""
        while True:
            key = self._keys.take(now=self._clock())
            if key is not None:
                # This worker was perhaps the one that kept the time for the delayed keys.
                if self._keys.next_due() is not None:
                    self._wake_one()
                return key
            await self._wait()

    def done(self, key: K) -> None:
        """Gives the key back."""
        self._keys.done(key)
        self._wake_one()

    def fail(self, key: K, *, at_least_seconds: float = 0.0) -> float:
        """Plans a retry after the key's own back-off; returns the delay in seconds."""
        delay = self._keys.fail(
            key, now=self._clock(), random_unit=self._random_unit(), at_least_seconds=at_least_seconds
        )
        self._wake_one()
        return delay

    def succeed(self, key: K) -> None:
        """Resets the key's back-off."""
        self._keys.succeed(key)

    async def _wait(self) -> None:
        due = self._keys.next_due()
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            # asyncio.wait leaves the future alone, and a timeout is no error here.
            await asyncio.wait([waiter], timeout=None if due is None else max(0.0, due - self._clock()))
        except asyncio.CancelledError:
            if waiter.done():
                self._wake_one()  # Woken and cancelled at once: the wake-up must not be lost.
            raise
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _wake_one(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
