"""A cache of one selection, kept current by list and watch, which tells each change, missed deletions too.

After an interruption it goes on from its last version; after a 410 it lists anew and tells the difference.
Must not decide anything about the objects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from modelfleet_kube.backoff import Backoff
from modelfleet_kube.cache import Change, IndexBy, ObjectCache
from modelfleet_kube.client import Client, WatchEvent
from modelfleet_kube.errors import GoneError, KubeError
from modelfleet_kube.resources import Selection

RETRY = Backoff(initial_seconds=0.2, maximum_seconds=30.0)
# Spread over a factor of two, so that the watches of many reflectors do not all end at once.
WATCH_SECONDS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class ReflectorHooks:
    """Called from the event loop, must not block: each change, each failure (it is retried), and randomness."""

    on_change: Callable[[Change], None]
    on_error: Callable[[Selection, KubeError], None]
    random_unit: Callable[[], float]


class Reflector:
    """Runs until cancelled. `synced` is set after the first list and stays so; `cache` is read freely."""

    def __init__(
        self, client: Client, selection: Selection, *, hooks: ReflectorHooks, index_by: IndexBy | None = None
    ) -> None:
        self._client = client
        self._hooks = hooks
        self._resource_version = ""
        self._failures = 0
        self.selection = selection
        self.cache = ObjectCache(index_by=index_by)
        self.synced = asyncio.Event()

    async def run(self) -> None:
        """Lists and watches for ever; errors back off and are told to `on_error`."""
        while True:
            try:
                if not self._resource_version:
                    await self.relist()
                await self._watch()
                self._failures = 0
            except GoneError:
                self._resource_version = ""
                self._failures += 1
            except KubeError as error:
                self._hooks.on_error(self.selection, error)
                self._failures += 1
            # Also after a watch that ended as it should: one that ends at once, for ever, must not spin.
            jitter = self._hooks.random_unit()
            await asyncio.sleep(RETRY.delay_seconds(max(1, self._failures), random_unit=jitter))

    async def relist(self) -> None:
        """One list, compared with the cache; every difference is told."""
        listed = await self._client.list(self.selection)
        changes = self.cache.replace(listed.items, version=int(listed.resource_version))
        self._resource_version = listed.resource_version
        self.synced.set()
        for change in changes:
            self._hooks.on_change(change)

    def put(self, item: dict[str, Any]) -> None:
        """Takes the answer to our own write, so that the next pass sees it. Not told: the writer knows."""
        self.cache.upsert(item)

    def take(self, event: WatchEvent) -> None:
        """Takes an event of our own watch, or of somebody else's on the same objects; a change is told."""
        change = None
        if event.type in ("ADDED", "MODIFIED"):
            change = self.cache.upsert(event.object)
        elif event.type == "DELETED":
            change = self.cache.remove(event.object)
        if change is not None:
            self._hooks.on_change(change)

    async def _watch(self) -> None:
        seconds = int(WATCH_SECONDS * (1.0 + self._hooks.random_unit()))
        events = self._client.watch(self.selection, resource_version=self._resource_version, timeout_seconds=seconds)
        async with aclosing(events):
            async for event in events:
                self._failures = 0
                self.take(event)
                self._resource_version = event.object["metadata"]["resourceVersion"]
