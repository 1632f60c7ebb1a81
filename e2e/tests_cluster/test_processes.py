"""Processes are known by pid and start time, and nothing else is ever signalled."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from e2e.cluster import processes
from e2e.cluster.shell import CommandError

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
)


def _start(directory: Path, *command: str) -> processes.ProcessRecord:
    return processes.start("probe", command, records=directory / "pids", log=directory / "logs" / "probe.log")


def test_a_started_process_is_recorded_alive_and_stopped_by_its_record(tmp_path: Path) -> None:
    started = _start(tmp_path, "sleep", "60")
    [record] = processes.read_records(tmp_path / "pids")
    assert record == started
    assert processes.is_alive(record)
    processes.stop([record])
    assert not processes.is_alive(record)


def test_a_reused_pid_is_not_ours(tmp_path: Path) -> None:
    record = _start(tmp_path, "sleep", "60")
    stranger = dataclasses.replace(record, start_ticks=record.start_ticks - 1)
    assert not processes.is_alive(stranger)
    processes.stop([stranger])
    assert processes.is_alive(record)
    processes.stop([record])


def test_a_process_that_ignores_sigterm_is_killed_after_the_timeout(tmp_path: Path) -> None:
    record = _start(tmp_path, sys.executable, "-c", STUBBORN)
    while "ready" not in Path(record.log).read_text():
        assert processes.is_alive(record)
    processes.stop([record], timeout_seconds=0.1)
    assert not processes.is_alive(record)


def test_a_process_that_ended_is_named_with_its_last_lines(tmp_path: Path) -> None:
    record = _start(tmp_path, "sh", "-c", "echo no such luck; exit 3")
    while processes.is_alive(record):
        pass
    with pytest.raises(CommandError, match="probe has ended; its last lines:\nno such luck"):
        processes.require_alive([record])


def test_a_half_written_record_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('{"name": "et')
    assert processes.read_records(tmp_path) == []


def test_a_process_without_a_record_is_found_by_name_and_argument(tmp_path: Path) -> None:
    record = _start(tmp_path, "sleep", "60.125")
    found = processes.find(("sleep",), argument="60.125")
    assert [(each.pid, each.start_ticks) for each in found] == [(record.pid, record.start_ticks)]
    assert processes.find(("cat",), argument="60.125") == []
    processes.stop([record])


def test_a_process_dies_with_its_parent_however_that_ends(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, sys; from e2e.cluster import processes; directory = pathlib.Path(sys.argv[1])\n"
        "record = processes.start('probe', ['sleep', '60'], records=directory, log=directory / 'log',"
        " dies_with='parent')\n"
        "while pathlib.Path(f'/proc/{record.pid}/comm').read_text() != 'sleep\\n': pass\n"
        "os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=root, env={**os.environ}, check=False)
    [record] = processes.read_records(tmp_path)
    while processes.is_alive(record):
        pass
