"""The control groups of the local cluster's nodes, in version 1 and version 2 hierarchies: make, empty, remove."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

from e2e.cluster.shell import CommandError, wait_until

MOUNT = Path("/sys/fs/cgroup")
CONTROLLERS = ("cpu", "cpuset", "io", "memory", "pids", "hugetlb")


def is_unified() -> bool:
    """Whether this machine has cgroup version 2."""
    return (MOUNT / "cgroup.controllers").exists()


def create(name: str) -> None:
    """Makes the group `name` below the root of every hierarchy, ready for a kubelet's pods."""
    if is_unified():
        available = (MOUNT / "cgroup.controllers").read_text().split()
        wanted = " ".join(f"+{controller}" for controller in CONTROLLERS if controller in available)
        (MOUNT / "cgroup.subtree_control").write_text(wanted)
    for hierarchy in _hierarchies():
        group = hierarchy / name
        group.mkdir(exist_ok=True)
        # In version 1 a new group starts without CPUs and memory nodes, and nothing can join it.
        for file in ("cpuset.cpus", "cpuset.mems"):
            if not is_unified() and (group / file).exists():
                (group / file).write_text((hierarchy / file).read_text())


def kill_all(name: str, *, timeout_seconds: float = 10.0) -> None:
    """Kills every process in the group and below it; returns when they are gone."""
    deadline = time.monotonic() + timeout_seconds
    while pids := _pids(name):
        if time.monotonic() > deadline:
            raise CommandError(f"processes of {name} survive SIGKILL: {sorted(pids)}")
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.02)


def remove(name: str) -> None:
    """Removes the group, whose processes are gone, and everything below it."""
    wait_until(
        lambda: all(_is_removed(group) for group in groups(name)),
        what=f"control group {name} is removed",
        timeout_seconds=10,
    )


def groups(name: str) -> list[Path]:
    """The directories of the group that exist, one for each hierarchy."""
    return [hierarchy / name for hierarchy in _hierarchies() if (hierarchy / name).is_dir()]


def _hierarchies() -> list[Path]:
    if is_unified():
        return [MOUNT]
    # cpu, cpuacct and the like may be links to one mounted together: each directory once.
    return sorted({path.resolve() for path in MOUNT.iterdir() if path.is_dir()})


def _is_removed(group: Path) -> bool:
    for directory, _, _ in os.walk(group, topdown=False):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            continue
        except OSError as error:
            # Busy for a moment longer than its last process lives.
            if error.errno != errno.EBUSY:
                raise
            return False
    return True


def _pids(name: str) -> set[int]:
    found: set[int] = set()
    for group in groups(name):
        for directory, _, _ in os.walk(group):
            found.update(_processes_in(Path(directory)))
    return found


def _processes_in(directory: Path) -> list[int]:
    try:
        return [int(line) for line in (directory / "cgroup.procs").read_text().split()]
    except OSError as error:
        # A runtime that is just ending removes its groups while we look.
        if error.errno not in {errno.ENOENT, errno.ENODEV}:
            raise
        return []
