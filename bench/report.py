"""The tables of a run as markdown: what is printed and what goes into docs/benchmarks. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from bench.machine import format_machine
from bench.requirements import Check
from bench.results import Report, ServerReport
from bench.servers import OURS
from bench.summary import LoadSummary

_MISSING = "–"


def format_report(report: Report, checks: Sequence[Check]) -> str:
    """Everything, in markdown."""
    parts = [
        f"{report.started_at}, commit {report.commit}, {report.seconds / 60:.0f} minutes"
        + (", quick: too few requests for conclusions" if report.quick else ""),
        format_machine(report.machine),
        "\n".join(_note(server) for server in report.servers.values()),
        _rates_table(report),
        *(_load_table(report, name) for name in _load_names(report)),
        _starts_table(report),
        _limits(report),
        _checks_table(checks),
    ]
    if report.largest_disturbance > 0.05:
        parts.insert(1, f"NOT QUIET: others used up to {report.largest_disturbance:.0%} of the CPU before a load began")
    return "\n\n".join(parts)


def _note(server: ServerReport) -> str:
    problems = "".join(f"; {name}: {problem}" for name, problem in server.problems.items())
    return f"- {server.name}: {server.unavailable or server.note}{problems}"


def _rates_table(report: Report) -> str:
    """Output tokens per second, and ours over each peer."""
    peers = [name for name in report.servers if name != OURS]
    header = ["output tok/s", *report.servers, *(f"{OURS} / {peer}" for peer in peers)]
    rows = []
    for name in _load_names(report):
        rates = {server.name: _rate(server, name) for server in report.servers.values()}
        ratios = [_ratio(rates.get(OURS), rates[peer]) for peer in peers]
        rows.append([name, *(_number(rate, 1) for rate in rates.values()), *ratios])
    return _table(header, rows)


def _load_table(report: Report, name: str) -> str:
    header = [name, "TTFT p50 / p99 ms", "ITL p50 / p99 ms", "TPOT p50 ms", "out tok/s", "cached", "failed"]
    rows = [_load_row(server.name, server.loads[name]) for server in report.servers.values() if name in server.loads]
    return _table(header, rows)


def _load_row(name: str, load: LoadSummary) -> list[str]:
    cached = f"{load.cached_tokens / load.prompt_tokens:.0%}" if load.prompt_tokens else _MISSING
    failed = f"{load.failed} of {load.requests}" + (f": {load.first_failure}" if load.first_failure else "")
    return [
        name,
        f"{_milliseconds(load.ttft_p50_seconds)} / {_milliseconds(load.ttft_p99_seconds)}",
        f"{_milliseconds(load.itl_p50_seconds, 1)} / {_milliseconds(load.itl_p99_seconds)}",
        _milliseconds(load.tpot_p50_seconds, 1),
        _number(load.output_tokens_per_second, 1),
        cached,
        failed,
    ]


def _starts_table(report: Report) -> str:
    header = ["", "ready s", "idle MB", "peak MB", "prefill tok/s", "2048 cold TTFT ms", "cached TTFT ms", "ratio"]
    rows = [
        [
            server.name,
            _number(server.ready_seconds, 1),
            _megabytes(server.idle_bytes),
            _megabytes(server.peak_bytes),
            _number(server.prefill_tokens_per_second, 0),
            _milliseconds(server.cold_ttft_seconds),
            _milliseconds(server.cached_ttft_seconds),
            _ratio(server.cached_ttft_seconds, server.cold_ttft_seconds),
        ]
        for server in report.servers.values()
    ]
    return _table(header, rows)


def _limits(report: Report) -> str:
    """Ours as a part of what the machine can do."""
    ours = report.servers.get(OURS)
    single = ours.loads.get("256/64, c=1") if ours else None
    lines = []
    if single is not None and single.tpot_p50_seconds:
        read = report.facts.weights_bytes / single.tpot_p50_seconds
        share = read / report.machine.read_bytes_per_second
        lines.append(f"decode c=1 reads the weights at {read / 1e9:.1f} GB/s: {share:.0%} of the machine's bandwidth")
    if ours is not None and ours.prefill_tokens_per_second:
        rate = ours.prefill_tokens_per_second * report.facts.prefill_flops_per_token
        share = rate / report.machine.bfloat16_flops
        lines.append(
            f"prefill computes {rate / 1e9:.0f} GFLOP/s in linear layers: {share:.0%} of the machine's bf16 rate"
        )
    return "\n".join(lines) or "limits: not measured"


def _checks_table(checks: Sequence[Check]) -> str:
    verdicts = {True: "met", False: "MISSED", None: _MISSING}
    return _table(
        ["required", "measured", ""], [[check.text, check.measured, verdicts[check.is_met]] for check in checks]
    )


def _load_names(report: Report) -> list[str]:
    names: dict[str, None] = {}
    for server in report.servers.values():
        names.update(dict.fromkeys(server.loads))
    return list(names)


def _rate(server: ServerReport, name: str) -> float | None:
    load = server.loads.get(name)
    return None if load is None else load.output_tokens_per_second


def _ratio(ours: float | None, other: float | None) -> str:
    return _MISSING if ours is None or not other else f"{ours / other:.2f}"


def _number(value: float | None, digits: int) -> str:
    return _MISSING if value is None else f"{value:,.{digits}f}"


def _milliseconds(seconds: float | None, digits: int = 0) -> str:
    return _number(None if seconds is None else seconds * 1e3, digits)


def _megabytes(count: int | None) -> str:
    return _number(None if count is None else count / 1e6, 0)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
