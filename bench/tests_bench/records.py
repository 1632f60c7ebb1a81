"""Made-up measurements for tests: a request's record, a machine, a report."""

from __future__ import annotations

from bench.load_job import RequestRecord
from bench.machine import MachineReport
from bench.model_facts import ModelFacts
from bench.results import Report, ServerReport
from bench.summary import LoadSummary


def request_record(*, sent: float = 0.0, arrivals: tuple[float, ...], failure: str | None = None) -> RequestRecord:
    """An answer with one token a chunk."""
    return RequestRecord(
        sent_seconds=sent,
        finished_seconds=arrivals[-1],
        arrivals_seconds=arrivals,
        prompt_tokens=256,
        completion_tokens=len(arrivals),
        failure=failure,
    )


def load_summary(rate: float, *, failed: int = 0) -> LoadSummary:
    """A load with this many output tokens per second."""
    return LoadSummary(
        requests=4,
        failed=failed,
        first_failure="HTTP 500" if failed else None,
        wall_seconds=2.0,
        output_tokens_per_second=rate,
        cached_tokens=0,
        prompt_tokens=1024,
        ttft_p50_seconds=0.1,
        ttft_p99_seconds=0.2,
        itl_p50_seconds=0.01,
        itl_p99_seconds=0.02,
        tpot_p50_seconds=0.0125,
    )


def report(**servers: ServerReport) -> Report:
    """A report on a machine of round numbers: 50 GB/s, 400 GFLOP/s, a model of 250 MB."""
    return Report(
        started_at="2026-01-01 00:00 UTC",
        quick=False,
        commit="abc",
        machine=MachineReport(
            cpu_model="Test CPU",
            cores=2,
            l3_bytes=32 << 20,
            memory_bytes=16 << 30,
            torch_version="2",
            buffer_bytes=250_000_000,
            read_bytes_per_second_one_thread=25e9,
            read_bytes_per_second=50e9,
            bfloat16_flops=400e9,
            float32_flops=100e9,
        ),
        facts=ModelFacts(weights_bytes=250_000_000, kv_bytes_per_token=1000, prefill_flops_per_token=200_000_000),
        kv_cache_bytes=1_000_000_000,
        servers={server.name: server for server in servers.values()},
    )
