"""`python -m bench.engine [--json FILE] [--peers vllm,llama.cpp,transformers] [--quick] [--check]`.

One command, one table: our server and its peers under the same loads, one after the other, on this machine. Every
scenario goes round all servers before the next; a server that is not measured is idle. Everything started is stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from bench import server_process
from bench.load_job import RequestRecord
from bench.machine import MachineReport
from bench.model_facts import read_model_facts
from bench.peer_environments import PeerUnavailableError
from bench.report import format_report
from bench.requirements import check_requirements
from bench.results import Report, ServerReport
from bench.runners import Runner, ServerRunner, TransformersRunner
from bench.scenarios import Scenario, scenarios
from bench.server_process import ServerError
from bench.servers import KV_CACHE_BYTES, OURS, SERVERS, Models
from bench.summary import LoadSummary, median, median_summary, summarize, time_to_first_token
from e2e.demo_model import demo_gguf_path, demo_model_path

TRANSFORMERS = "transformers"
TRANSFORMERS_NOTE = "generate, bf16, static batches; no server, no streaming, no continuous batching"
# How long a load waits for others to leave the CPU alone before it is measured all the same.
QUIET_TIMEOUT_SECONDS = 60.0
PEERS = (*(server.name for server in SERVERS if server.name != OURS), TRANSFORMERS)


class Benchmark:
    """One run. `close` stops whatever still runs."""

    def __init__(self, report: Report, runners: dict[str, Runner]) -> None:
        self._report = report
        self._runners = runners
        self._rounds: dict[tuple[str, str], list[LoadSummary]] = {}

    def run(self, scenario: Scenario) -> None:
        """One scenario for all servers, its rounds interleaved."""
        for round_number in range(scenario.rounds):
            for name, runner in self._runners.items():
                row = self._report.servers[name]
                if row.unavailable is not None or scenario.name in row.problems or not runner.supports(scenario):
                    continue
                try:
                    self._measure(scenario, runner, row=row, round_number=round_number)
                except PeerUnavailableError as error:
                    row.unavailable = str(error)
                except ServerError as error:
                    row.problems[scenario.name] = str(error)
                    runner.stop()

    def close(self) -> None:
        """Stops all servers."""
        for runner in self._runners.values():
            runner.stop()

    def _measure(self, scenario: Scenario, runner: Runner, *, row: ServerReport, round_number: int) -> None:
        runner.prepare(scenario)
        disturbance = server_process.wait_until_quiet(timeout_seconds=QUIET_TIMEOUT_SECONDS)
        self._report.largest_disturbance = max(self._report.largest_disturbance, disturbance)
        records = runner.run(scenario, round_number=round_number)
        rounds = self._rounds.setdefault((row.name, scenario.name), [])
        rounds.append(summarize(records))
        row.loads[scenario.name] = median_summary(rounds)
        if scenario.kind == "cached":
            _note_first_tokens(row, records, scenario)
        memory = runner.memory()
        row.ready_seconds = median(runner.ready_seconds)
        row.idle_bytes = runner.idle_bytes
        row.peak_bytes = max(row.peak_bytes or 0, memory.peak_bytes if memory else 0)
        rate = rounds[-1].output_tokens_per_second
        busy = f"   [others used {disturbance:.0%} of the CPU]" if disturbance > server_process.QUIET_FRACTION else ""
        _say(f"{scenario.name:28} {row.name:14} {rate:8.1f} tok/s, {rounds[-1].failed} failed{busy}")


def _note_first_tokens(row: ServerReport, records: list[RequestRecord], scenario: Scenario) -> None:
    """The job sends each prompt twice, one request at a time: even records are cold, odd ones cached."""
    cold = [time_to_first_token(record) for record in records[::2] if record.failure is None]
    cached = [time_to_first_token(record) for record in records[1::2] if record.failure is None]
    row.cold_ttft_seconds, row.cached_ttft_seconds = median(cold), median(cached)
    if row.cold_ttft_seconds:
        row.prefill_tokens_per_second = scenario.input_tokens / row.cold_ttft_seconds


def run_benchmark(*, peers: tuple[str, ...], quick: bool, log_directory: Path) -> Report:
    """Measures the machine, then every scenario."""
    models = Models(safetensors=demo_model_path(), gguf=demo_gguf_path())
    facts = read_model_facts(models.safetensors)
    started = time.monotonic()
    report = Report(
        started_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        quick=quick,
        commit=_commit(),
        machine=_measure_machine(facts.weights_bytes),
        facts=facts,
        kv_cache_bytes=KV_CACHE_BYTES,
    )
    runners: dict[str, Runner] = {}
    for server in SERVERS:
        if server.name == OURS or server.name in peers:
            runners[server.name] = ServerRunner(server=server, models=models, log_directory=log_directory)
            report.servers[server.name] = ServerReport(name=server.name, note=server.note)
    if TRANSFORMERS in peers:
        runners[TRANSFORMERS] = TransformersRunner(models=models, log_directory=log_directory)
        report.servers[TRANSFORMERS] = ServerReport(name=TRANSFORMERS, note=TRANSFORMERS_NOTE)
    benchmark = Benchmark(report, runners)
    try:
        for scenario in scenarios(quick=quick):
            benchmark.run(scenario)
    finally:
        benchmark.close()
    report.seconds = time.monotonic() - started
    return report


def _measure_machine(buffer_bytes: int) -> MachineReport:
    """In a process of its own, so that this one never loads torch."""
    command = [sys.executable, "-m", "bench.machine", "--json", "--bytes", str(buffer_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return MachineReport(**json.loads(done.stdout))


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _stop_on_terminate(_signal_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured")
    parser.add_argument("--peers", default=",".join(PEERS), help="default: %(default)s; an empty list is none")
    parser.add_argument("--quick", action="store_true", help="a few minutes, for a look, not for conclusions")
    parser.add_argument("--check", action="store_true", help="exit 1 when a requirement is missed or not measured")
    parser.add_argument("--logs", type=Path, help="keep the servers' logs in this directory")
    arguments = parser.parse_args()
    arguments.peers = tuple(name for name in arguments.peers.split(",") if name)
    unknown = set(arguments.peers) - set(PEERS)
    if unknown:
        parser.error(f"--peers: unknown {', '.join(sorted(unknown))}; known: {', '.join(PEERS)}")
    return arguments


def main() -> int:
    """Runs, prints the tables, and judges when asked to."""
    arguments = _parse()
    signal.signal(signal.SIGTERM, _stop_on_terminate)
    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as scratch:
        logs = arguments.logs or Path(scratch)
        logs.mkdir(parents=True, exist_ok=True)
        try:
            report = run_benchmark(peers=arguments.peers, quick=arguments.quick, log_directory=logs)
        except KeyboardInterrupt:
            _say("stopped")
            return 130
    checks = check_requirements(report)
    print(format_report(report, checks))
    if arguments.json is not None:
        document = {"report": dataclasses.asdict(report), "checks": [dataclasses.asdict(check) for check in checks]}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    return 1 if arguments.check and not all(check.is_met for check in checks) else 0


if __name__ == "__main__":
    sys.exit(main())
