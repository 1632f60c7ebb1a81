"""A real server process for tests: started, waited for, asked, stopped by its own pid."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai

ENGINE_IMAGE = Path(__file__).parents[1]
FAKE = ("-m", "tests_engine.fake_server")
REAL = ("-m", "modelfleet_engine.main", "serve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole HTTP answer; header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class ServerProcess:
    """A running `serve`; its log lines are collected as they come."""

    process: subprocess.Popen[str]
    lines: list[dict[str, object]] = field(default_factory=list)
    stderr: str = ""

    def __post_init__(self) -> None:
        self._readers = [
            threading.Thread(target=self._read_stdout, daemon=True),
            threading.Thread(target=self._read_stderr, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_stdout(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(json.loads(line))

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.stderr += line

    def event(self, name: str, *, timeout_seconds: float = 30.0) -> dict[str, object]:
        """The first log line with this event; fails if the process ends or the time is over without one."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            found = [line for line in list(self.lines) if line["event"] == name]
            if found:
                return found[0]
            if self.process.poll() is not None and not any(reader.is_alive() for reader in self._readers):
                break
            time.sleep(0.005)
        raise AssertionError(f"no event {name!r}: {self.lines} {self.stderr}")

    @property
    def port(self) -> int:
        port = self.event("listening")["port"]
        assert isinstance(port, int)
        return port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> http.client.HTTPConnection:
        """A connection of its own."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def get(self, path: str) -> Answer:
        return self._exchange("GET", path, None, {})

    def post(self, path: str, body: object, *, headers: dict[str, str] | None = None) -> Answer:
        """Posts JSON, or bytes as they are."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._exchange("POST", path, raw, {"Content-Type": "application/json", **(headers or {})})

    def _exchange(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            answer_headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(status=response.status, headers=answer_headers, body=response.read())

    def client(self) -> openai.OpenAI:
        """The real client; it retries nothing, so every error is seen."""
        return openai.OpenAI(base_url=self.url + "/v1", api_key="none", max_retries=0, timeout=60)

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.url + "/v1", api_key="none", max_retries=0, timeout=60)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self, *, timeout_seconds: float = 30.0) -> int:
        """The exit code."""
        code = self.process.wait(timeout=timeout_seconds)
        for reader in self._readers:
            reader.join(timeout=5)
        return code


@contextlib.contextmanager
def running(
    command: Sequence[str], arguments: Sequence[str], *, environment: dict[str, str] | None = None
) -> Iterator[ServerProcess]:
    """Starts a server on a free port of the loopback; kills it if the test left it running."""
    process = subprocess.Popen(
        [sys.executable, *command, "--host", "127.0.0.1", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ENGINE_IMAGE,
        env={**os.environ, "PYTHONPATH": str(ENGINE_IMAGE), **(environment or {})},
    )
    try:
        yield ServerProcess(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@contextlib.contextmanager
def fake_server(directory: Path, *arguments: str, environment: dict[str, str] | None = None) -> Iterator[ServerProcess]:
    """The server over the fake device, ready."""
    with running(FAKE, (str(directory), "--port", "0", *arguments), environment=environment) as server:
        server.event("ready")
        yield server
