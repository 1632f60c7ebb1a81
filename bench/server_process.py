"""A measured server: started in a process group of its own, waited for, weighed and stopped. Linux only.

Knows no server in particular. The kernel ends the leader when the benchmark ends, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

READY_TIMEOUT_SECONDS = 240.0
STOP_TIMEOUT_SECONDS = 15.0
_READY_POLL_SECONDS = 0.02
# Below this part of all cores' time a measurement is not disturbed.
QUIET_FRACTION = 0.05


class ServerError(Exception):
    """A server did not start or ended by itself; the message holds the end of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How one server is started. Equal launches are the same server: it is kept running between scenarios."""

    command: tuple[str, ...]
    port: int
    ready_path: str
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Resident bytes of the server's processes, added up: pages they share count once for each."""

    resident_bytes: int
    peak_bytes: int


@dataclass
class ServerProcess:
    """A running server."""

    launch: Launch
    process: subprocess.Popen[bytes]
    log: Path
    ready_seconds: float = field(default=0.0)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.launch.port}"

    def memory(self) -> Memory:
        """Of the server's whole process group."""
        return group_memory(self.process.pid)

    def stop(self) -> None:
        """SIGTERM to the leader, then SIGKILL to what is left of its group."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT_SECONDS)
        for pid in group_members(self.process.pid):
            _kill(pid)
        self.process.wait()


def group_memory(group: int) -> Memory:
    """Resident and peak bytes of a process group, by VmRSS and VmHWM of proc(5)."""
    statuses = [_status_bytes(pid) for pid in group_members(group)]
    return Memory(
        resident_bytes=sum(status.get("VmRSS", 0) for status in statuses),
        peak_bytes=sum(status.get("VmHWM", 0) for status in statuses),
    )


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def start(launch: Launch, *, log: Path) -> ServerProcess:
    """Starts the server and returns when it says it is ready. Raises ServerError if it does not."""
    started = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "--", *launch.command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(dict(launch.environment)),
            start_new_session=True,
        )
    server = ServerProcess(launch=launch, process=process, log=log)
    try:
        _wait_ready(server, deadline=started + READY_TIMEOUT_SECONDS)
    except BaseException:
        server.stop()
        raise
    server.ready_seconds = time.perf_counter() - started
    return server


def busy_fraction(*, over_seconds: float = 0.5) -> float:
    """The part of all cores' time that anybody used while this call slept: what disturbs the next measurement."""
    before = _cpu_ticks()
    time.sleep(over_seconds)
    after = _cpu_ticks()
    total = sum(after) - sum(before)
    # Fields 3 and 4 of /proc/stat's first line are idle and iowait.
    idle = sum(after[3:5]) - sum(before[3:5])
    return 1 - idle / total if total else 0.0


def wait_until_quiet(*, timeout_seconds: float) -> float:
    """Waits until almost nobody uses the CPU, at most so long; answers the part that is still used."""
    deadline = time.monotonic() + timeout_seconds
    while (busy := busy_fraction(over_seconds=1.0)) > QUIET_FRACTION and time.monotonic() < deadline:
        pass
    return busy


def last_lines(log: Path, *, count: int = 15) -> str:
    """The end of a log, for an error message."""
    return "\n".join(log.read_text(errors="replace").strip().splitlines()[-count:])


def _wait_ready(server: ServerProcess, *, deadline: float) -> None:
    url = server.base_url + server.launch.ready_path
    while time.perf_counter() < deadline:
        if server.process.poll() is not None:
            raise ServerError(f"ended with {server.process.returncode}; last lines:\n{last_lines(server.log)}")
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                if response.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            # Not yet: the port is closed, or the answer is 503.
            pass
        time.sleep(_READY_POLL_SECONDS)
    raise ServerError(f"not ready after {READY_TIMEOUT_SECONDS:.0f} s; last lines:\n{last_lines(server.log)}")


def _environment(changes: Mapping[str, str]) -> dict[str, str]:
    # A proxy is for the internet; a server's own setting of threads must be its default; and an installed server has
    # its modules compiled.
    dropped = {"http_proxy", "https_proxy", "all_proxy", "omp_num_threads", "pythondontwritebytecode"}
    inherited = {name: value for name, value in os.environ.items() if name.lower() not in dropped}
    return {**inherited, **changes}


def group_members(group: int) -> Sequence[int]:
    """The processes of a group that exist now."""
    return [pid for pid in _all_pids() if _process_group(pid) == group]


def _all_pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _process_group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def _status_bytes(pid: int) -> dict[str, int]:
    """The Vm* fields of /proc/PID/status; empty for a process that is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    pairs = (line.split(":", 1) for line in lines if line.startswith("Vm"))
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}


def _cpu_ticks() -> list[int]:
    return [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
