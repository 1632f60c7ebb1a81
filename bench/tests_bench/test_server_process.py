"""Starting, weighing and stopping a real process."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from bench import server_process
from bench.server_process import Launch, ServerError

# Serves 200 on every path, with a child in its group that ignores SIGTERM.
WITH_A_CHILD = """
import http.server, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def _launch(code: str) -> Launch:
    port = server_process.free_port()
    return Launch(command=(sys.executable, "-c", code, str(port)), port=port, ready_path="/health")


def _exists(pid: int) -> bool:
    try:
        # A zombie of another parent than us is gone as far as we are concerned.
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_a_server_is_ready_when_it_answers_and_stops_with_everything_it_started(tmp_path: Path) -> None:
    server = server_process.start(_launch(WITH_A_CHILD), log=tmp_path / "log")
    group = server_process.group_members(server.process.pid)
    try:
        assert server.ready_seconds > 0
        assert len(group) == 2
        memory = server.memory()
        assert 0 < memory.resident_bytes <= memory.peak_bytes
    finally:
        server.stop()
    # The kernel reaps the child a moment later.
    deadline = time.monotonic() + 10
    while any(_exists(pid) for pid in group) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [pid for pid in group if _exists(pid)] == []


def test_a_server_that_ends_by_itself_says_why(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"ended with 3; last lines:\nno such model"):
        server_process.start(_launch("import sys; print('no such model'); sys.exit(3)"), log=tmp_path / "log")


def test_the_disturbance_is_a_part_of_all_cores() -> None:
    assert 0 <= server_process.busy_fraction(over_seconds=0.05) <= 1
