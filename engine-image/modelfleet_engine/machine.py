"""How much memory and how many cores this process may use: cgroup v1 and v2, CPU affinity. Decides nothing.

Inside a container the cgroup's own directory is mounted at the root of the hierarchy; on a host it lies below it at the
path of /proc/self/cgroup. Both are looked at, and every ancestor, because each of them limits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# cgroup v1 says "no limit" with a number of this order (the largest page-aligned int64).
_UNLIMITED_BYTES = 1 << 60


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """The smallest memory limit over this process's cgroup and its ancestors; None where there is none."""
    limits = [
        value
        for directory in _directories(root, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        if (value := _read_int(directory / name)) is not None and value < _UNLIMITED_BYTES
    ]
    return min(limits, default=None)


def memory_used_bytes(root: Path = Path("/")) -> int:
    """What counts against the limit and cannot be reclaimed: the cgroup's usage without its page cache."""
    for directory in _directories(root, "memory"):
        usage = _read_int(directory / "memory.current")
        if usage is None:
            usage = _read_int(directory / "memory.usage_in_bytes")
        if usage is not None:
            return max(0, usage - _page_cache_bytes(directory))
    return _resident_bytes(root)


def memory_peak_bytes(root: Path = Path("/")) -> int | None:
    """The most this process's cgroup has ever used, page cache included; None where nobody counts it."""
    for directory in _directories(root, "memory"):
        for name in ("memory.peak", "memory.max_usage_in_bytes"):
            if (value := _read_int(directory / name)) is not None:
                return value
    return None


def usable_cores(root: Path = Path("/")) -> int:
    """Whole cores: the CPU quota rounded down, within the affinity mask, at least 1.

    Rounded down because threads beyond the quota only throttle each other; the fraction is left to HTTP.
    """
    quotas = [quota for directory in _directories(root, "cpu") if (quota := _cpu_quota(directory)) is not None]
    affinity = len(os.sched_getaffinity(0))
    return max(1, min([affinity, *(int(quota) for quota in quotas)]))


def _directories(root: Path, controller: str) -> Iterator[Path]:
    """This process's cgroup directory first, then its ancestors, for v2 and v1 hierarchies alike."""
    base = root / "sys/fs/cgroup"
    for hierarchy, path in _memberships(root, controller):
        mount = base / hierarchy
        relative = Path(path.lstrip("/"))
        for level in (relative, *relative.parents):
            directory = mount / level
            if ".." not in level.parts and directory.is_dir():
                yield directory


def _memberships(root: Path, controller: str) -> list[tuple[str, str]]:
    """(hierarchy below /sys/fs/cgroup, path) for the controller, v1 first."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except FileNotFoundError:
        return [(controller, ""), ("", "")]
    found: list[tuple[str, str]] = []
    for line in lines:
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            found.append((controller, path))
        elif not names:
            found.append(("", path))
    return sorted(found, reverse=True)


def _page_cache_bytes(directory: Path) -> int:
    counted = {"inactive_file", "active_file", "total_inactive_file", "total_active_file"}
    fields = {}
    for line in (directory / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name in counted:
            fields[name] = int(value)
    prefix = "total_" if "total_inactive_file" in fields else ""
    return fields.get(f"{prefix}inactive_file", 0) + fields.get(f"{prefix}active_file", 0)


def _cpu_quota(directory: Path) -> float | None:
    try:
        quota, _, period = (directory / "cpu.max").read_text().strip().partition(" ")
        return None if quota == "max" else int(quota) / int(period)
    except FileNotFoundError:
        pass
    v1_quota = _read_int(directory / "cpu.cfs_quota_us")
    v1_period = _read_int(directory / "cpu.cfs_period_us")
    if v1_quota is None or v1_period is None or v1_quota <= 0:
        return None
    return v1_quota / v1_period


def _resident_bytes(root: Path) -> int:
    pages = int((root / "proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _read_int(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        return None
    return int(text) if text.lstrip("-").isdigit() else None
