"""A version number that others wait for: the long poll behind `/internal/demand` and `/internal/endpoints`."""

from __future__ import annotations

import asyncio


class Notifier:
    """`bump` on every change worth telling; `wait_beyond` returns at once if it has happened already."""

    def __init__(self) -> None:
        self.version = 1
        self._changed = asyncio.Event()

    def bump(self) -> None:
        """Something changed: everybody who waits is told."""
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_beyond(self, version: int, *, timeout_seconds: float) -> None:
        """Waits until the version is another one than `version`, or the time is over."""
        if version != self.version or timeout_seconds <= 0:
            return
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._changed.wait()
        except TimeoutError:
            return
