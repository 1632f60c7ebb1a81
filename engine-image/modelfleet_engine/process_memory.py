"""What this process's memory does: what is resident, how far it rose during a piece of work, and giving back what is
free. Decides nothing; `machine` says what is allowed.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modelfleet_engine import machine

# Written to clear_refs it sets VmHWM back to what is resident now (Linux 4.0, proc_pid_clear_refs(5)).
_RESET_PEAK = "5"
# madvise(2): forget these pages; a private file's clean ones are read again from the page cache when they are used.
_MADV_DONTNEED = 4
# First and last address, permissions, offset, device, inode, path.
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ (\d+) +(\S.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryGrowth:
    """How many bytes memory rose at its highest, and which counter says so."""

    growth_bytes: int
    source: str


class PeakMemory:
    """Watches memory from its creation on: the process's own peak where the kernel counts it, else the cgroup's."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._is_reset = _reset_peak(root)
        self._resident_before = _status_bytes(root, "VmRSS") or 0
        self._peak_before = _status_bytes(root, "VmHWM") or 0
        self._used_before = machine.memory_used_bytes(root)
        self._group_peak_before = machine.memory_peak_bytes(root)

    def growth(self) -> MemoryGrowth | None:
        """What it rose by so far; None where no counter tells.

        A peak that could not be set back counts only if it rose: else it is one of before.
        """
        peak = _status_bytes(self._root, "VmHWM")
        if peak is not None and (self._is_reset or peak > self._peak_before):
            return MemoryGrowth(growth_bytes=max(0, peak - self._resident_before), source="VmHWM")
        group_peak = machine.memory_peak_bytes(self._root)
        if group_peak is not None and self._group_peak_before is not None and group_peak > self._group_peak_before:
            return MemoryGrowth(growth_bytes=max(0, group_peak - self._used_before), source="cgroup peak")
        return None


def resident_bytes() -> int:
    """This process's resident memory now."""
    return _status_bytes(Path("/"), "VmRSS") or 0


def give_back_free_memory() -> bool:
    """Returns the allocator's free pages to the kernel, where the C library can; whether it did.

    glibc keeps what was freed below something still in use, in every thread's arena: after packing, copies of weights.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):  # musl and macOS have no such call, and no arenas that need it
        return False
    return bool(trim(0))


def unmap_unused_library_pages() -> None:
    """Lets go of library pages that were read once, by the dynamic linker; those in use come back at their next use.

    Importing a torch build with CUDA makes 250 MiB of libraries resident, of which a CPU engine uses 15. They stay in
    the page cache, so the cost is a minor fault for each few pages that are used after all.
    """
    try:
        madvise = ctypes.CDLL(None).madvise
    except (AttributeError, OSError):
        return
    for first, length in _clean_library_mappings():
        madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), _MADV_DONTNEED)


def _clean_library_mappings() -> Iterator[tuple[int, int]]:
    """Address and bytes of shared libraries' mappings that can only be read and hold nothing but the file's content.

    A mapping the linker has written to (relocated data, read-only by now) holds anonymous pages: never forget those.
    """
    mapping: re.Match[str] | None = None
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        if (found := _MAPPING.fullmatch(line)) is not None:
            mapping = found
        elif mapping is not None and line.startswith("Anonymous:"):
            first, last, permissions, _, path = mapping.groups()
            is_clean = line.split()[1] == "0" and permissions in ("r--p", "r-xp")
            if is_clean and ".so" in Path(path).name:
                yield int(first, 16), int(last, 16) - int(first, 16)
            mapping = None


def _reset_peak(root: Path) -> bool:
    try:
        (root / "proc/self/clear_refs").write_text(_RESET_PEAK)
    except OSError:  # not compiled in, or /proc is read-only: `growth` falls back
        return False
    return True


def _status_bytes(root: Path, name: str) -> int | None:
    try:
        lines = (root / "proc/self/status").read_text().splitlines()
    except FileNotFoundError:
        return None
    for line in lines:
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    return None
