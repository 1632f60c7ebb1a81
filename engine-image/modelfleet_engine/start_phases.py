"""How long each phase of the start took, for the log, the metrics and the fleet's cold-start record."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class StartPhases:
    """Seconds per phase of the start, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times what runs within."""
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
