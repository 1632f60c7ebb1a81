"""The simulated engines that routers are judged on, and the replay of a trace through a router."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.gateway_routing import LEAST_LOAD, OMNISCIENT, ROUTERS, compare, format_rows, read_trace
from bench.routing_engine import BLOCK_TOKENS, EngineProfile, SimulatedEngine, SimulatedRequest

PROFILE = EngineProfile(
    base_seconds=1.0,
    per_sequence_seconds=0.1,
    per_prefill_token_seconds=0.001,
    max_sequences=2,
    step_tokens=1024,
    kv_tokens=10 * BLOCK_TOKENS,
)


def request(number: int, *, blocks: tuple[int, ...], output_tokens: int = 3) -> SimulatedRequest:
    """A prompt of these whole blocks and one token."""
    return SimulatedRequest(
        number=number,
        arrives_at=0.0,
        prompt_tokens=len(blocks) * BLOCK_TOKENS + 1,
        output_tokens=output_tokens,
        blocks=blocks,
    )


def run_to_the_end(engine: SimulatedEngine) -> list[float]:
    """The seconds of each plan."""
    seconds: list[float] = []
    now = 0.0
    while True:
        steps, step_seconds = engine.plan_steps()
        if not steps:
            return seconds
        now += steps * step_seconds
        seconds.append(steps * step_seconds)
        engine.run_steps(steps, now=now)


def test_a_prompt_is_computed_in_chunks_and_its_answer_in_equal_steps() -> None:
    engine = SimulatedEngine(PROFILE)
    engine.submit(request(1, blocks=(1, 2, 3)))
    # 1,024 + 513 tokens, the second step yields the first of three tokens.
    assert run_to_the_end(engine) == pytest.approx([1.1 + 1.024, 1.1 + 0.513, 2 * 1.1])
    assert (engine.computed_tokens, engine.generated_tokens) == (1537, 3)


def test_the_same_prompt_again_costs_its_last_token() -> None:
    engine = SimulatedEngine(PROFILE)
    again = request(2, blocks=(1, 2, 3))
    engine.submit(request(1, blocks=(1, 2, 3)))
    run_to_the_end(engine)
    engine.submit(again)
    assert run_to_the_end(engine) == pytest.approx([1.1 + 0.001, 2 * 1.1])
    assert again.cached_tokens == 3 * BLOCK_TOKENS


def test_a_full_cache_forgets_the_end_of_the_oldest_prompt() -> None:
    engine = SimulatedEngine(PROFILE)
    for number, blocks in enumerate([(1, 2, 3, 4), (5, 6, 7, 8), (9, 10)]):
        engine.submit(request(number, blocks=blocks))
        run_to_the_end(engine)
    # The third needs three blocks where two are free.
    assert engine.leading_blocks((1, 2, 3, 4)) == 3
    assert engine.leading_blocks((5, 6, 7, 8)) == 4
    assert engine.cache.take_events() == ([1, 2, 3, 5, 6, 7, 8, 9, 10], [4])


def test_what_is_promised_counts_for_who_knows_everything() -> None:
    engine = SimulatedEngine(PROFILE)
    engine.submit(request(1, blocks=(1, 2)))
    assert (engine.leading_blocks((1, 2, 3)), engine.promised_blocks((1, 2, 3))) == (0, 2)
    run_to_the_end(engine)
    assert (engine.leading_blocks((1, 2, 3)), engine.promised_blocks((1, 2, 3))) == (2, 2)


def test_every_request_of_a_trace_is_answered_by_every_router(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [
        {
            "timestamp": 100 * n,
            "input_length": 2 * BLOCK_TOKENS + 100,
            "output_length": 5,
            "hash_ids": [n % 7, 100 + n % 14, 1000 + n],
        }
        for n in range(120)
    ]
    trace.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    requests = read_trace(trace, speed=2.0)
    assert requests[-1].arrives_at == pytest.approx(119 * 0.1 / 2)
    compared = compare(requests, engines=3, names=list(ROUTERS))
    by_name = {row.router: row for row in compared}
    assert by_name["round robin"].hit_rate < by_name["ours (Auto)"].hit_rate <= by_name[OMNISCIENT].hit_rate * 1.01
    assert by_name[LEAST_LOAD].max_over_mean < 1.1
    assert len(format_rows(compared).splitlines()) == 2 + len(ROUTERS)
