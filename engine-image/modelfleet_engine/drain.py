"""The end of a serving process, as the contract "drain" has it.

After SIGTERM the engine is not ready any more but still accepts for a while (routers need time to notice); then
it refuses with 503, finishes what runs within the drain timeout, and cuts what is left with an error.
Must not know HTTP: `http/` asks `is_refusing` and reports what is in flight.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# How long clients of cut requests may take to be told.
FLUSH_SECONDS = 2.0


class Drain:
    """Counts what is in flight and walks through the phases once `run` is called."""

    def __init__(self, *, accept_seconds: float, drain_seconds: float) -> None:
        self._accept_seconds = accept_seconds
        self._drain_seconds = drain_seconds
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_draining = False
        self.is_refusing = False

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @contextmanager
    def request(self) -> Iterator[None]:
        """Wraps one request from admission to its last byte."""
        self._in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if self._in_flight == 0:
                self._idle.set()

    async def wait_idle(self, *, timeout_seconds: float) -> bool:
        """Waits until nothing is in flight; False if that took too long."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def run(self, *, cut: Callable[[], None]) -> bool:
        """Runs the whole drain; True if nothing had to be cut. `cut` ends every running generation."""
        self.is_draining = True
        await asyncio.sleep(self._accept_seconds)
        self.is_refusing = True
        if await self.wait_idle(timeout_seconds=self._drain_seconds):
            return True
        cut()
        await self.wait_idle(timeout_seconds=FLUSH_SECONDS)
        return False
