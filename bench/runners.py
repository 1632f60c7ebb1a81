"""One running thing per row of the tables: gives it a scenario's job, keeps it up between scenarios, stops it."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bench import server_process
from bench.load_job import LoadJob, RequestRecord, records_from_json
from bench.prompts import random_prompts
from bench.scenarios import Scenario
from bench.server_process import Memory, ServerError, ServerProcess
from bench.servers import MODEL_NAME, Models, Server

_CLIENT_TIMEOUT_SECONDS = 900.0
# Untimed requests after a start: what a server makes on first use belongs to no scenario.
_WARM_UP = {"count": 4, "tokens": 256}
_WARM_UP_OUTPUT_TOKENS = 8


class Runner(Protocol):
    """What the benchmark needs of a row. `prepare` may start or restart it and is not measured."""

    ready_seconds: list[float]
    idle_bytes: int | None

    def supports(self, scenario: Scenario) -> bool: ...
    def prepare(self, scenario: Scenario) -> None: ...
    def run(self, scenario: Scenario, *, round_number: int) -> list[RequestRecord]: ...
    def memory(self) -> Memory | None: ...
    def stop(self) -> None: ...


@dataclass
class ServerRunner:
    """A server process behind HTTP, driven by the load generator's process."""

    server: Server
    models: Models
    log_directory: Path
    port: int = field(default_factory=server_process.free_port)
    ready_seconds: list[float] = field(default_factory=list)
    idle_bytes: int | None = None
    _process: ServerProcess | None = None

    def supports(self, scenario: Scenario) -> bool:
        """Every server answers every scenario."""
        del scenario
        return True

    def prepare(self, scenario: Scenario) -> None:
        """Starts the server in this scenario's configuration unless it runs in it. Raises ServerError."""
        launch = self.server.launch(self.models, scenario, self.port)
        if self._process is not None and self._process.launch == launch and self._process.process.poll() is None:
            return
        self.stop()
        log = self.log_directory / f"{self.server.name}.log"
        if not self.ready_seconds:
            # Not counted: it compiles modules and fills the page cache, once in an installation's life.
            server_process.start(launch, log=log).stop()
        self._process = server_process.start(launch, log=log)
        self.ready_seconds.append(self._process.ready_seconds)
        if self.idle_bytes is None:
            self.idle_bytes = self._process.memory().resident_bytes
        warm_up = LoadJob(
            base_url=self._process.base_url,
            model=MODEL_NAME,
            concurrency=min(scenario.concurrency, _WARM_UP["count"]),
            output_tokens=_WARM_UP_OUTPUT_TOKENS,
            prompts=random_prompts(seed=0, **_WARM_UP),
        )
        failures = [record.failure for record in run_client(warm_up) if record.failure is not None]
        if failures:
            raise ServerError(f"the warm-up failed: {failures[0]}")

    def run(self, scenario: Scenario, *, round_number: int) -> list[RequestRecord]:
        """One round of the scenario."""
        if self._process is None:
            raise RuntimeError("prepare first")
        return run_client(scenario.job(base_url=self._process.base_url, model=MODEL_NAME, round_number=round_number))

    def memory(self) -> Memory | None:
        """Of the running process; None when there is none."""
        return None if self._process is None else self._process.memory()

    def stop(self) -> None:
        """Ends the server if it runs."""
        if self._process is not None:
            self._process.stop()
            self._process = None


@dataclass
class TransformersRunner:
    """`generate` in a process of its own: no server."""

    models: Models
    log_directory: Path
    ready_seconds: list[float] = field(default_factory=list)
    idle_bytes: int | None = None
    _process: subprocess.Popen[str] | None = None

    def supports(self, scenario: Scenario) -> bool:
        """Chats need a server that keeps what it computed between two calls."""
        return scenario.kind != "chats"

    def prepare(self, scenario: Scenario) -> None:
        """Loads the model unless it is loaded."""
        del scenario
        if self._process is not None:
            return
        started = time.perf_counter()
        with (self.log_directory / "transformers.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.transformers_generate", str(self.models.safetensors)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._read_line()
        self.ready_seconds.append(time.perf_counter() - started)
        self.idle_bytes = server_process.group_memory(self._process.pid).resident_bytes
        self._run_job(LoadJob(base_url="", model="", concurrency=1, output_tokens=2, prompts=((1000,) * 256,)))

    def run(self, scenario: Scenario, *, round_number: int) -> list[RequestRecord]:
        """One round of the scenario, in batches."""
        return self._run_job(scenario.job(base_url="", model="", round_number=round_number))

    def memory(self) -> Memory | None:
        """Of the running process; None when there is none."""
        return None if self._process is None else server_process.group_memory(self._process.pid)

    def stop(self) -> None:
        """Ends the process if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _run_job(self, job: LoadJob) -> list[RequestRecord]:
        if self._process is None or self._process.stdin is None:
            raise RuntimeError("prepare first")
        self._process.stdin.write(job.to_json() + "\n")
        self._process.stdin.flush()
        return records_from_json(self._read_line())

    def _read_line(self) -> str:
        if self._process is None or self._process.stdout is None:
            raise RuntimeError("prepare first")
        line = self._process.stdout.readline()
        if not line:
            log = self.log_directory / "transformers.log"
            raise ServerError(f"transformers ended; last lines:\n{server_process.last_lines(log)}")
        return line


def run_client(job: LoadJob) -> list[RequestRecord]:
    """Runs a job in the load generator's own process."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.load_client"],
        input=job.to_json(),
        capture_output=True,
        text=True,
        timeout=_CLIENT_TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the load generator failed: {done.stderr[-2000:]}")
    return records_from_json(done.stdout)
