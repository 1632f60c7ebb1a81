"""The workers: take a key, make a pass, and say when it comes again.

The one place where exceptions of a pass end: not-yet is retried, the user's too (slowly), a bug is told loudly with
its traceback, and none of them stops the other keys. Must not know what a pass does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from modelfleet_kube.dirty_set import DirtySet, Priority
from modelfleet_kube.errors import ErrorKind, KubeError
from modelfleet_kube.resources import ObjectKey

from modelfleet_operator.metrics import Metrics

logger = logging.getLogger(__name__)

# What a user or an administrator must repair is looked at again this often even if nothing tells us.
USER_ERROR_RETRY_SECONDS = 30.0
# Each request ends within 30 s; a pass that has not moved for this long never will.
STUCK_SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PassResult:
    """How a pass ended: what it wrote, whether another pass will see more at once, and when to look unasked."""

    written: int = 0
    is_unsettled: bool = False
    requeue_after_seconds: float | None = None


class WorkerPool:
    """`count` workers on one dirty set. `make_pass` handles one key; `clock` is monotonic."""

    def __init__(
        self,
        dirty: DirtySet[ObjectKey],
        make_pass: Callable[[ObjectKey], Awaitable[PassResult]],
        *,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._dirty = dirty
        self._make_pass = make_pass
        self._metrics = metrics
        self._clock = clock
        self._started_at: dict[ObjectKey, float] = {}

    async def run(self, *, count: int) -> None:
        """Works until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(self._work(), name=f"worker-{number}")

    @property
    def active_count(self) -> int:
        """Passes under way."""
        return len(self._started_at)

    def stuck(self) -> str | None:
        """A key whose pass has taken far too long, in words; None where there is none."""
        now = self._clock()
        for key, started_at in self._started_at.items():
            if now - started_at > STUCK_SECONDS:
                return f"the pass over {key} has been running for {now - started_at:.0f} s"
        return None

    async def _work(self) -> None:
        while True:
            key = await self._dirty.take()
            self._started_at[key] = self._clock()
            try:
                result = await self._guarded_pass(key)
            finally:
                seconds = self._clock() - self._started_at.pop(key)
                self._dirty.done(key)
            self._metrics.reconciles.labels(result=result).inc()
            self._metrics.reconcile_seconds.observe(seconds)
            # A pass without a request never suspends, and a thousand of them in a row would hold up the probes.
            await asyncio.sleep(0)

    async def _guarded_pass(self, key: ObjectKey) -> str:
        """One pass; returns the word the metrics count it under."""
        try:
            result = await self._make_pass(key)
        except KubeError as error:
            return self._on_api_error(key, error)
        except Exception:
            delay = self._dirty.fail(key)
            logger.exception("a bug in the pass over %s; retrying in %.1f s", key, delay)
            return "bug"
        self._dirty.succeed(key)
        if result.is_unsettled:
            self._dirty.add(key, priority=Priority.STARTED)
        elif result.requeue_after_seconds is not None:
            self._dirty.add(key, priority=Priority.STARTED, delay_seconds=result.requeue_after_seconds)
        return "written" if result.written else "unchanged"

    def _on_api_error(self, key: ObjectKey, error: KubeError) -> str:
        if error.kind is ErrorKind.BUG:
            delay = self._dirty.fail(key)
            logger.exception(
                "a request of ours that the API server does not understand; %s again in %.1f s", key, delay
            )
            return "bug"
        least = USER_ERROR_RETRY_SECONDS if error.kind is ErrorKind.USER else error.retry_after_seconds or 0.0
        delay = self._dirty.fail(key, at_least_seconds=least)
        logger.warning("the pass over %s is retried in %.1f s: %s", key, delay, error)
        return str(error.kind)
