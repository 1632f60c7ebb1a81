"""What the soak watches while the load runs: the engine's memory and whether its probes answer."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import aiohttp

# Memory is compared between these parts of the run: the first fifth warms up caches and is not looked at.
WARM_SHARE = 0.2
WINDOW_SHARE = 0.2
# What an allocator may drift by and still count as stable.
ALLOWED_GROWTH = 0.05
ALLOWED_GROWTH_BYTES = 64 << 20


@dataclass(slots=True)
class Watch:
    """Samples, one a second: resident bytes, and how long /health took."""

    pid: int
    resident_bytes: list[int] = field(default_factory=list)
    health_seconds: list[float] = field(default_factory=list)
    failed_probes: list[str] = field(default_factory=list)

    async def run(self, session: aiohttp.ClientSession, base_url: str) -> None:
        """Samples until it is cancelled."""
        while True:
            self.resident_bytes.append(resident_bytes(self.pid))
            started = time.monotonic()
            try:
                async with session.get(base_url + "/health", timeout=aiohttp.ClientTimeout(total=30)) as response:
                    if response.status != 200:
                        self.failed_probes.append(f"{response.status} {await response.text()}")
            except (aiohttp.ClientError, TimeoutError) as error:
                self.failed_probes.append(f"{type(error).__name__}: {error}")
            self.health_seconds.append(time.monotonic() - started)
            await asyncio.sleep(1.0)


def resident_bytes(pid: int) -> int:
    """The process's resident memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} has no memory any more: it ended")


def growth(samples: list[int]) -> tuple[int, int]:
    """Median resident bytes early (after warming up) and late in the run."""
    window = max(1, int(len(samples) * WINDOW_SHARE))
    first = int(len(samples) * WARM_SHARE)
    return int(median(samples[first : first + window])), int(median(samples[-window:]))


def is_stable(samples: list[int]) -> bool:
    """Whether memory stayed where it was, within the allocator's drift."""
    early, late = growth(samples)
    return late - early <= max(ALLOWED_GROWTH * early, ALLOWED_GROWTH_BYTES)
