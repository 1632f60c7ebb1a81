"""Background processes by record: what we started, and nothing else, is what we look at and what we stop.

A record holds the pid and the process's start time in clock ticks since boot: together they name one process for
ever, so that a pid the kernel has given to somebody else in the meantime is never signalled.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from e2e.cluster.shell import CommandError, environment

# Children of this very process have to be waited for, or they stay as zombies.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRecord:
    """One process: its name among ours, pid, and start time in clock ticks since boot."""

    name: str
    pid: int
    start_ticks: int
    log: str


def start(
    name: str,
    command: Sequence[str],
    *,
    records: Path,
    log: Path,
    dies_with: str = "nobody",
) -> ProcessRecord:
    """Starts `command` in a session of its own, output to `log`, and records it as `records/<name>.json`.

    `dies_with="parent"`: the kernel kills it when this process ends, however it ends.
    """
    records.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    prefix = ["setpriv", "--pdeathsig", "KILL", "--"] if dies_with == "parent" else []
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*prefix, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(),
            start_new_session=True,
        )
    _children[process.pid] = process
    # Ours until we wait for it, so the kernel still knows it even if it has ended already.
    _, ticks = _state_and_ticks(process.pid)
    record = ProcessRecord(name=name, pid=process.pid, start_ticks=ticks, log=str(log))
    (records / f"{name}.json").write_text(json.dumps(asdict(record)))
    return record


def read_records(records: Path) -> list[ProcessRecord]:
    """Every recorded process, alive or not, by name."""
    found = []
    for path in sorted(records.glob("*.json")):
        try:
            found.append(ProcessRecord(**json.loads(path.read_text())))
        except (ValueError, TypeError):
            # A kill -9 in the middle of the write: the process itself is found by its command line (`cleanup`).
            continue
    return found


def is_alive(record: ProcessRecord) -> bool:
    """Whether that very process still runs; a zombie does not."""
    child = _children.get(record.pid)
    if child is not None and child.poll() is not None:
        return False
    return start_ticks(record.pid) == record.start_ticks


def start_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot (proc(5), stat field 22); None when gone or a zombie."""
    try:
        state, ticks = _state_and_ticks(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in {"Z", "X"} else ticks


def stop(records: Iterable[ProcessRecord], *, timeout_seconds: float = 10.0) -> None:
    """SIGTERM to all at once, SIGKILL to those still there after the timeout; returns when all are gone."""
    stopping = [record for record in records if is_alive(record)]
    waiting = stopping
    for number, patience in ((signal.SIGTERM, timeout_seconds), (signal.SIGKILL, 10.0)):
        for record in waiting:
            _signal(record, number)
        deadline = time.monotonic() + patience
        while waiting and time.monotonic() < deadline:
            waiting = [record for record in waiting if is_alive(record)]
            time.sleep(0.02 if waiting else 0)
    if waiting:
        raise CommandError(f"still there after SIGKILL: {', '.join(f'{r.name} ({r.pid})' for r in waiting)}")
    for record in stopping:
        child = _children.pop(record.pid, None)
        if child is not None:
            # The leader is a zombie while its threads still end, which on a busy machine takes more than a moment.
            child.wait(timeout=10.0)


def require_alive(records: Iterable[ProcessRecord]) -> None:
    """Raises CommandError with the last lines of the first of them that has ended."""
    for record in records:
        if not is_alive(record):
            raise CommandError(f"{record.name} has ended; its last lines:\n{last_lines(Path(record.log))}")


def find(names: Collection[str], *, argument: str) -> list[ProcessRecord]:
    """Processes of these program names that have `argument` (a path of ours) in their command line.

    Finds what a lost record leaves, and the container shims, which containerd starts and nobody records.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        name = Path(arguments[0]).name
        ticks = start_ticks(int(entry.name))
        if ticks is not None and name in names and any(argument in each for each in arguments[1:]):
            found.append(ProcessRecord(name=name, pid=int(entry.name), start_ticks=ticks, log=""))
    return found


def last_lines(log: Path, *, count: int = 15) -> str:
    """The end of a log, for an error message."""
    if not log.exists():
        return ""
    return "\n".join(log.read_text(errors="replace").strip().splitlines()[-count:])


def _signal(record: ProcessRecord, number: signal.Signals) -> None:
    try:
        os.kill(record.pid, number)
    except ProcessLookupError:
        return


def _state_and_ticks(pid: int) -> tuple[str, int]:
    stat = Path(f"/proc/{pid}/stat").read_text()
    # The second field is the name in parentheses and may hold anything, parentheses too.
    fields = stat[stat.rindex(")") + 2 :].split()
    return fields[0], int(fields[19])
