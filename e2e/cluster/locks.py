"""A lock between processes, for what must not be built twice at the same time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from e2e.cluster.shell import say


@contextmanager
def exclusive(lock: Path, *, what: str) -> Iterator[None]:
    """Holds the lock file `lock`; says `what` it waits for when another process has it.

    The kernel releases it when the process ends, however it ends.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is at {what}: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
