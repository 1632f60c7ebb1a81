"""Whether this replica acts: holds the Lease, opens the gate for the workers, ends the process on loss.

Caches and the dirty set run on every replica; only workers wait here. Must not write anything but the Lease.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from modelfleet_kube.errors import KubeError
from modelfleet_kube.lease import LeaderElector

from modelfleet_operator.metrics import Metrics

logger = logging.getLogger(__name__)


class Leadership:
    """`gate` opens once, when we lead. `on_lost` must end the process at once: another replica may be acting."""

    def __init__(self, elector: LeaderElector | None, *, metrics: Metrics, on_lost: Callable[[], None]) -> None:
        self._elector = elector
        self._metrics = metrics
        self._on_lost = on_lost
        self.gate = asyncio.Event()

    async def run(self) -> None:
        """Contends, leads, and calls `on_lost` when that ends. Without an elector: leads from the start."""
        if self._elector is None:
            self._open()
            await asyncio.Event().wait()
            return
        await self._elector.acquire(on_error=self._on_error)
        self._open()
        await self._elector.hold(on_error=self._on_error)
        self._metrics.leader.set(0)
        logger.error("leadership is lost; this process ends so that only one replica acts")
        self._on_lost()

    async def release(self) -> None:
        """After the workers have stopped: lets the next replica start without waiting for the lease to expire."""
        self._metrics.leader.set(0)
        if self._elector is None:
            return
        try:
            await self._elector.release()
        except KubeError as error:
            logger.warning("the lease was not released, so it expires by itself: %s", error)

    def _open(self) -> None:
        self._metrics.leader.set(1)
        self.gate.set()
        logger.info("this replica leads")

    def _on_error(self, error: KubeError) -> None:
        logger.warning("the lease cannot be read or renewed, retrying: %s", error)
