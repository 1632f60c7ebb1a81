"""Which text-block hashes are resident, told to every subscriber of `GET /kv-events` as it changes.

A mirror on the event loop's thread, fed by the engine's updates. Memory is bounded: a subscriber that does not keep up
loses its backlog and gets a new snapshot instead. Must not know HTTP.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from modelfleet_api.protocol import KvEvent

from modelfleet_engine.request import KvEvents

# Events a subscriber may be behind; a step makes at most one.
MAX_BACKLOG_EVENTS = 256


class KvSubscription:
    """One reader's place in the stream: a snapshot first, then each event once, in order."""

    def __init__(self, hub: KvEventHub) -> None:
        self._hub = hub
        self._backlog: deque[KvEvent] = deque()
        self._needs_snapshot = True
        self._wakeup = asyncio.Event()

    async def next_event(self) -> KvEvent | None:
        """The next event, as soon as there is one; None when the hub is closed. Safe to cancel: nothing is lost."""
        while True:
            if self._hub.is_closed:
                return None
            if self._needs_snapshot:
                self._needs_snapshot = False
                return self._hub.snapshot()
            if self._backlog:
                return self._backlog.popleft()
            self._wakeup.clear()
            await self._wakeup.wait()

    def offer(self, event: KvEvent) -> None:
        """The hub's side: one more event. A backlog too long is dropped for a snapshot, which holds all of it."""
        if not self._needs_snapshot:
            if len(self._backlog) < MAX_BACKLOG_EVENTS:
                self._backlog.append(event)
            else:
                self._backlog.clear()
                self._needs_snapshot = True
        self._wakeup.set()

    def wake(self) -> None:
        """The hub's side: it is closed."""
        self._wakeup.set()


class KvEventHub:
    """The mirror and its subscribers. Sequence numbers count the engine's events from 1; 0 is "none yet"."""

    def __init__(self) -> None:
        # A dictionary for its order: the same history gives the same snapshot.
        self._resident: dict[str, None] = {}
        self._sequence = 0
        self._subscriptions: set[KvSubscription] = set()
        self.is_closed = False

    @property
    def subscribers(self) -> int:
        """How many connections follow."""
        return len(self._subscriptions)

    def publish(self, events: KvEvents) -> None:
        """Applies one step's events, stored before evicted, and passes them on."""
        for text_hash in events.stored:
            self._resident[text_hash] = None
        for text_hash in events.evicted:
            self._resident.pop(text_hash, None)
        self._sequence += 1
        event = KvEvent(sequence=self._sequence, stored=events.stored, evicted=events.evicted)
        for subscription in self._subscriptions:
            subscription.offer(event)

    def snapshot(self) -> KvEvent:
        """Everything that is resident after event `sequence`."""
        return KvEvent(sequence=self._sequence, snapshot=True, stored=tuple(self._resident))

    @contextmanager
    def subscribe(self) -> Iterator[KvSubscription]:
        """A subscription for as long as the context is open."""
        subscription = KvSubscription(self)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    def close(self) -> None:
        """Ends every subscription and every later one: this engine is going away."""
        self.is_closed = True
        for subscription in self._subscriptions:
            subscription.wake()
