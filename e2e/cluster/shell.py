"""Running other programs: one error type with their last words, progress for the long ones, timed phases."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

PROGRESS_SECONDS = 15.0
ERROR_LINES = 15


class UserError(Exception):
    """Something the person at the terminal can mend; the message is one line that says how. Exit code 2."""


class CommandError(Exception):
    """A program failed; the message carries its command line and the end of its output."""


Runner = Callable[[Sequence[str]], str]
"""Runs a command line and returns its standard output; raises CommandError. Tests pass one that records."""


def environment() -> dict[str, str]:
    """This process's environment, with the cluster's own addresses kept away from any HTTP proxy."""
    own = "localhost,127.0.0.1,198.18.0.0/15,.svc,.cluster.local"
    before = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
    direct = f"{before},{own}" if before else own
    return {**os.environ, "NO_PROXY": direct, "no_proxy": direct}


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout_seconds: float | None = None,
) -> str:
    """Runs `command` to its end and returns its standard output; raises CommandError when it fails."""
    try:
        done = subprocess.run(
            list(command),
            env={**environment(), **(env or {})},
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
    except FileNotFoundError as missing:
        raise CommandError(f"{command[0]}: not found") from missing
    except subprocess.TimeoutExpired as late:
        raise CommandError(f"{' '.join(command)}: not done after {timeout_seconds:.0f} s") from late
    if done.returncode != 0:
        raise CommandError(_failure(command, done.returncode, done.stderr or done.stdout))
    return done.stdout


def run_long(
    command: Sequence[str],
    *,
    what: str,
    log: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> None:
    """Runs a command of minutes: its output goes to `log`, and every 15 s a line says that it is still running."""
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(command),
            cwd=cwd,
            env={**environment(), **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            while True:
                try:
                    returncode = process.wait(timeout=PROGRESS_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    say(f"{what}: {time.monotonic() - started:.0f} s so far{_last_line(log)}")
        except BaseException:
            process.kill()
            process.wait()
            raise
    if returncode != 0:
        raise CommandError(_failure(command, returncode, log.read_text(errors="replace")))


def say(message: str) -> None:
    """A line for the person who waits: on standard error, so that standard output stays for results."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Prints the name of a step and how long it took."""
    started = time.monotonic()
    yield
    say(f"  {name:<32} {time.monotonic() - started:6.1f} s")


def wait_until(done: Callable[[], bool], *, what: str, timeout_seconds: float, pause_seconds: float = 0.1) -> None:
    """Polls `done`; raises CommandError naming `what` when it stays false."""
    deadline = time.monotonic() + timeout_seconds
    while not done():
        if time.monotonic() > deadline:
            raise CommandError(f"{what}: not so after {timeout_seconds:.0f} s")
        time.sleep(pause_seconds)


def _failure(command: Sequence[str], returncode: int, output: str) -> str:
    tail = "\n".join(output.strip().splitlines()[-ERROR_LINES:])
    return f"{' '.join(command)}: exit code {returncode}\n{tail}"


def _last_line(log: Path) -> str:
    lines = log.read_bytes()[-2000:].decode(errors="replace").strip().splitlines()
    return f" ({lines[-1].strip()[:100]})" if lines else ""
