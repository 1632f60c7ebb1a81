"""The scheduler under pressure: preemption, aborts and random workloads. Nothing is lost, nothing deadlocks."""

from __future__ import annotations

import random

import pytest
from modelfleet_engine.request import FinishReason
from modelfleet_engine.scheduler import Scheduler

from tests_engine.fake_device import expected_tokens
from tests_engine.scheduling import MODEL, VOCAB_SIZE, Driver, limits, request


def test_under_pressure_the_request_with_least_computed_gives_way_and_comes_back() -> None:
    # Six blocks of four tokens: two sequences of up to 20 tokens each cannot both stay.
    driver = Driver(Scheduler(limits(kv_blocks=6, block_tokens=4, max_model_len=20)))
    driver.scheduler.add(request("old", prompt=(1,) * 8, max_tokens=12))
    driver.scheduler.add(request("young", prompt=(2,) * 3, max_tokens=16))

    driver.run()

    assert driver.tokens == {
        "old": expected_tokens(MODEL, (1,) * 8, max_tokens=12),
        "young": expected_tokens(MODEL, (2,) * 3, max_tokens=16),
    }
    assert list(driver.finished) == ["old", "young"]
    assert driver.scheduler.stats().preemptions == 1
    driver.scheduler.check_integrity()


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_a_preempted_request_comes_back_with_its_generated_tokens_as_one_prefill(*, prefix_caching: bool) -> None:
    driver = Driver(Scheduler(limits(kv_blocks=6, max_model_len=20, prefix_caching=prefix_caching)))
    driver.scheduler.add(request("old", prompt=(1,) * 8, max_tokens=12))
    driver.scheduler.add(request("young", prompt=(2,) * 3, max_tokens=16))

    driver.run()

    first_chunks = [
        row
        for planned in driver.plans
        for row, sequence in zip(planned.plan.sequences, planned.sequences, strict=True)
        if row.is_first_chunk and sequence.request.request_id == "young"
    ]
    assert len(first_chunks) == 2
    resumed = first_chunks[1]
    expected = tuple(expected_tokens(MODEL, (2,) * 3, max_tokens=6))
    assert (resumed.prompt_token_ids, resumed.generated_token_ids) == ((2,) * 3, expected)
    # Of its two full blocks the older was still there; the newer, its tail, went first.
    found = 4 if prefix_caching else 0
    assert resumed.start_position == found
    assert resumed.token_ids == ((2,) * 3 + expected)[found:]
    # Eight tokens were computed: only what is computed again counts.
    assert driver.scheduler.stats().recomputed_tokens == 8 - found
    # Its time in the queue is counted once, and what it finds of its own is no hit.
    assert driver.cached_tokens() == {"old": 0, "young": 0}


def test_nothing_is_admitted_in_the_step_that_preempts() -> None:
    driver = Driver(Scheduler(limits(kv_blocks=6, block_tokens=4, max_model_len=20)))
    driver.scheduler.add(request("old", prompt=(1,) * 8, max_tokens=12))
    driver.scheduler.add(request("young", prompt=(2,) * 3, max_tokens=16))
    driver.scheduler.add(request("next", prompt=(3,), max_tokens=2))
    before = 0
    while driver.scheduler.has_work:
        driver.turn()
        preemptions = driver.scheduler.stats().preemptions
        if preemptions > before:
            assert driver.plans[-1].admitted == ()
        before = preemptions
    assert before > 0


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("seed", range(12))
def test_random_workloads_finish_exactly_and_leak_nothing(seed: int, depth: int) -> None:
    chance = random.Random(seed)
    block_tokens = chance.choice([1, 3, 4, 16])
    max_model_len = chance.choice([24, 60])
    scheduler = Scheduler(
        limits(
            seqs=chance.choice([1, 3, 8]),
            batched_tokens=chance.choice([1, 4, 16, 64]),
            block_tokens=block_tokens,
            # From "only one fits" to "many fit".
            kv_blocks=-(-max_model_len // block_tokens) * chance.choice([1, 2, 5]),
            max_model_len=max_model_len,
        )
    )
    driver = Driver(scheduler, depth=depth)
    expected: dict[str, list[int]] = {}
    aborted: set[str] = set()
    for index in range(40):
        prompt = tuple(chance.randrange(VOCAB_SIZE) for _ in range(chance.randint(1, max_model_len - 1)))
        max_tokens = chance.randint(1, max_model_len - len(prompt))
        stop = frozenset(chance.sample(range(VOCAB_SIZE), chance.choice([0, 2])))
        scheduler.add(request(f"r{index}", prompt=prompt, max_tokens=max_tokens, stop_token_ids=stop))
        expected[f"r{index}"] = expected_tokens(MODEL, prompt, max_tokens=max_tokens, stop_token_ids=stop)
        for _ in range(chance.randint(0, 12)):
            driver.turn()
            scheduler.check_integrity()
        if chance.random() < 0.2:
            victim = f"r{chance.randrange(index + 1)}"
            if scheduler.abort(victim):
                aborted.add(victim)
    driver.run()

    assert set(driver.finished) == set(expected) - aborted
    for name, tokens in driver.tokens.items():
        whole = expected[name]
        assert tokens == (whole[: len(tokens)] if name in aborted else whole)
        if name not in aborted:
            is_length = len(whole) == len(tokens) and driver.finished[name] is FinishReason.LENGTH
            assert is_length or driver.finished[name] is FinishReason.STOP
    stats = scheduler.stats()
    assert (stats.running, stats.waiting, stats.kv_blocks_used) == (0, 0, 0)
    scheduler.check_integrity()


@pytest.mark.parametrize("seed", range(4))
def test_every_step_keeps_to_its_limits(seed: int) -> None:
    chance = random.Random(seed)
    scheduler = Scheduler(limits(seqs=4, batched_tokens=12, kv_blocks=16, block_tokens=4, max_model_len=48))
    driver = Driver(scheduler)
    for index in range(20):
        prompt = tuple(chance.randrange(VOCAB_SIZE) for _ in range(chance.randint(1, 30)))
        scheduler.add(request(f"r{index}", prompt=prompt, max_tokens=chance.randint(1, 18)))

    driver.run()

    for planned in driver.plans:
        rows = planned.plan.sequences
        assert 1 <= sum(row.computed_tokens for row in rows) <= 12
        assert len(rows) <= 4
        assert len({row.slot for row in rows}) == len(rows)
        is_decode = [
            row.start_position >= len(s.request.prompt_token_ids)
            for row, s in zip(rows, planned.sequences, strict=True)
        ]
        blocks = [block for row in rows for block in row.block_table]
        assert len(set(blocks)) == len(blocks), "two sequences share a block nobody meant to share"
        assert is_decode == sorted(is_decode, reverse=True), "decodes come first"


def test_the_same_workload_gives_the_same_plans() -> None:
    def plans() -> list[object]:
        driver = Driver(Scheduler(limits(kv_blocks=10, max_model_len=40)))
        for index in range(10):
            driver.scheduler.add(request(f"r{index}", prompt=(index, index), max_tokens=30))
        driver.run()
        return [planned.plan for planned in driver.plans]

    assert plans() == plans()
