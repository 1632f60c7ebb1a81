"""The required ratios: met, missed, not measured; and the tables that show them."""

from __future__ import annotations

from bench.report import format_report
from bench.requirements import Check, check_requirements
from bench.results import Report, ServerReport
from bench.tests_bench.records import load_summary, report


def _ours(**changes: object) -> ServerReport:
    row = ServerReport(
        name="modelfleet",
        note="ours",
        ready_seconds=4.0,
        idle_bytes=850_000_000,
        peak_bytes=1_850_000_000,
        cold_ttft_seconds=1.0,
        cached_ttft_seconds=0.15,
        prefill_tokens_per_second=1000.0,
        loads={
            "256/64, c=1": load_summary(42.0),
            "256/64, c=8": load_summary(140.0),
            "256/64, c=32": load_summary(300),
        },
    )
    for name, value in changes.items():
        setattr(row, name, value)
    return row


def _vllm() -> ServerReport:
    loads = {"256/64, c=1": load_summary(30.0), "256/64, c=8": load_summary(100.0), "256/64, c=32": load_summary(200.0)}
    return ServerReport(name="vllm", note="a peer", loads=loads)


def _llama_cpp() -> ServerReport:
    return ServerReport(name="llama.cpp", note="a peer", prefill_tokens_per_second=300.0)


def _missed(of: Report) -> list[Check]:
    return [check for check in check_requirements(of) if check.is_met is False]


def test_a_run_at_its_limits_meets_every_requirement() -> None:
    checks = check_requirements(report(ours=_ours(), vllm=_vllm(), llama=_llama_cpp()))
    assert [check.is_met for check in checks] == [True] * 9
    assert [check.measured for check in checks[:5]] == ["1.40", "1.40", "1.50", "3.33", "0.15"]


def test_each_requirement_can_be_missed() -> None:
    slow = {"256/64, c=1": load_summary(41.0), "256/64, c=8": load_summary(139.0), "256/64, c=32": load_summary(299.0)}
    missed = _missed(
        report(
            ours=_ours(
                loads=slow,
                prefill_tokens_per_second=899.0,
                cached_ttft_seconds=0.151,
                ready_seconds=5.01,
                idle_bytes=850_000_001,
                peak_bytes=1_850_000_001,
            ),
            vllm=_vllm(),
            llama=_llama_cpp(),
        )
    )
    assert len(missed) == 8
    failing = {"256/64, c=64": load_summary(500.0, failed=1)}
    assert [check.measured for check in _missed(report(ours=_ours(loads=failing)))] == ["1 failed"]


def test_a_ratio_without_its_peer_is_not_measured_and_not_met() -> None:
    checks = check_requirements(report(ours=_ours()))
    assert [check.is_met for check in checks] == [None] * 4 + [True] * 5


def test_our_own_server_that_does_not_start_fails_the_check() -> None:
    checks = check_requirements(report(ours=_ours(unavailable="ended with 3")))
    assert checks == [Check(text="modelfleet was measured", measured="ended with 3", is_met=False)]


def test_the_tables_show_rates_ratios_limits_and_verdicts() -> None:
    ours, vllm = _ours(), _vllm()
    vllm.problems["chats"] = "not ready after 240 s"
    measured = report(ours=ours, vllm=vllm, llama=_llama_cpp())
    measured.largest_disturbance = 0.4
    text = format_report(measured, check_requirements(measured))
    assert "| 256/64, c=8 | 140.0 | 100.0 | – | 1.40 | – |" in text
    assert "decode c=1 reads the weights at 20.0 GB/s: 40% of the machine's bandwidth" in text
    assert "prefill computes 200 GFLOP/s in linear layers: 50% of the machine's bf16 rate" in text
    assert "- vllm: a peer; chats: not ready after 240 s" in text
    assert "NOT QUIET: others used up to 40% of the CPU" in text
    assert "| 256/64, c=32: at least 1.5 x vllm | 1.50 | met |" in text
