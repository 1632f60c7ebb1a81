"""The prefix cache and the choices of one call in the scheduler: what is computed once, and what is told of it."""

from __future__ import annotations

import pytest
from modelfleet_engine import kv_manager
from modelfleet_engine.prefix_cache import block_digest
from modelfleet_engine.request import FinishReason
from modelfleet_engine.scheduler import Scheduler
from modelfleet_engine.step_plan import BlockCopy

from tests_engine.paged_memory import expected_tokens, token_logprobs
from tests_engine.scheduling import MODEL, VOCAB_SIZE, Driver, limits, request

PROMPT = tuple(range(1, 15))  # 14 tokens: three full blocks of four and a half one


def _driver(**values: object) -> Driver:
    return Driver(Scheduler(limits(**values)))


def test_the_full_blocks_of_a_prompt_are_computed_once() -> None:
    driver = _driver()
    driver.scheduler.add(request("first", prompt=PROMPT))
    driver.run()
    driver.scheduler.add(request("second", prompt=PROMPT))
    driver.run()

    assert driver.rows_of("second")[0] == (12, 2)
    assert driver.cached_tokens() == {"first": 0, "second": 12}
    assert driver.tokens["second"] == driver.tokens["first"] == expected_tokens(MODEL, PROMPT, max_tokens=8)
    stats = driver.scheduler.stats()
    assert (stats.prefix_queried_tokens, stats.prefix_hit_tokens) == (28, 12)


def test_at_least_one_token_is_computed_for_its_logits() -> None:
    driver = _driver()
    for name in ("first", "second"):
        driver.scheduler.add(request(name, prompt=PROMPT[:8]))
        driver.run()

    assert driver.rows_of("second")[0] == (4, 4)


def test_the_next_turn_of_a_chat_finds_the_answer_before_it() -> None:
    driver = _driver()
    driver.scheduler.add(request("turn-1", prompt=PROMPT, max_tokens=8))
    driver.run()
    prompt = (*PROMPT, *driver.tokens["turn-1"], 7, 7, 7)
    driver.scheduler.add(request("turn-2", prompt=prompt))
    driver.run()

    # 22 tokens of the first turn; the last one was never fed back.
    assert driver.rows_of("turn-2")[0] == (20, 5)
    assert driver.tokens["turn-2"] == expected_tokens(MODEL, prompt, max_tokens=8)


def test_blocks_can_be_shared_while_their_first_owner_still_decodes() -> None:
    driver = _driver()
    driver.scheduler.add(request("first", prompt=PROMPT, max_tokens=30))
    driver.turn()
    driver.scheduler.add(request("second", prompt=PROMPT))
    driver.turn()

    assert driver.cached_tokens()["second"] == 12
    # Four blocks of the first; of the second only what is not shared.
    assert driver.scheduler.stats().kv_blocks_used == 4 + 1
    driver.run()
    assert driver.tokens["second"] == expected_tokens(MODEL, PROMPT, max_tokens=8)


def test_two_requests_that_computed_the_same_block_end_with_one() -> None:
    driver = _driver(batched_tokens=64)
    for name in ("a", "b"):
        driver.scheduler.add(request(name, prompt=PROMPT, max_tokens=20))
    driver.turn()

    # Both were planned in one step; then three of four blocks of one of them are given back.
    assert driver.cached_tokens() == {"a": 0, "b": 0}
    assert driver.scheduler.stats().kv_blocks_used == 4 + 1
    driver.run()
    assert driver.tokens["a"] == driver.tokens["b"] == expected_tokens(MODEL, PROMPT, max_tokens=20)


def test_a_block_is_hashed_once_however_often_its_request_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[tuple[int, ...]] = []

    def counting(parent: bytes, token_ids: tuple[int, ...]) -> bytes:
        hashed.append(token_ids)
        return block_digest(parent, token_ids)

    monkeypatch.setattr(kv_manager, "block_digest", counting)
    scheduler = Scheduler(limits(kv_blocks=6, max_model_len=24))
    scheduler.add(request("runs", prompt=(5,) * 12, max_tokens=8))
    scheduler.plan_step(0.0)
    scheduler.add(request("waits", prompt=PROMPT))
    hashed.clear()

    for _ in range(4):
        scheduler.plan_step(0.0)

    # Nothing of it is cached: the first block is all one needs to know, and it is remembered.
    assert hashed == [PROMPT[:4]]
    assert scheduler.stats().waiting == 1


def test_a_salt_hides_what_others_computed() -> None:
    driver = _driver()
    for name, salt in (("a", "tenant-a"), ("b", "tenant-b"), ("a-again", "tenant-a")):
        driver.scheduler.add(request(name, prompt=PROMPT, cache_salt=salt))
        driver.run()

    assert driver.cached_tokens() == {"a": 0, "b": 0, "a-again": 12}


def test_without_prefix_caching_nothing_is_found() -> None:
    driver = _driver(prefix_caching=False)
    for name in ("a", "b"):
        driver.scheduler.add(request(name, prompt=PROMPT))
        driver.run()

    assert driver.cached_tokens() == {"a": 0, "b": 0}
    stats = driver.scheduler.stats()
    assert (stats.kv_blocks_cached, stats.prefix_queried_tokens, stats.prefix_hit_tokens) == (0, 0, 0)


def test_log_probabilities_of_a_prompt_are_computed_though_its_blocks_are_cached() -> None:
    driver = _driver(batched_tokens=5)
    driver.scheduler.add(request("first", prompt=PROMPT))
    driver.run()
    driver.scheduler.add(request("scored", prompt=PROMPT, prompt_logprobs=2))
    driver.run()

    assert driver.rows_of("scored")[:3] == [(0, 5), (5, 5), (10, 4)]
    assert driver.prompt_logprobs["scored"] == [
        token_logprobs(MODEL, PROMPT[:k], PROMPT[k], alternatives=2, vocab_size=VOCAB_SIZE) for k in range(1, 14)
    ]


def test_log_probabilities_of_a_prompt_come_once_though_a_preemption_has_part_of_it_computed_again() -> None:
    driver = _driver(batched_tokens=2, kv_blocks=6, max_model_len=24)
    driver.scheduler.add(request("chat", prompt=(2,) * 3, max_tokens=16))
    driver.turn()
    driver.turn()
    driver.scheduler.add(request("scored", prompt=PROMPT[:12], max_tokens=1, priority=1, prompt_logprobs=0))
    driver.run()

    starts = [start for start, _ in driver.rows_of("scored")]
    assert driver.scheduler.stats().preemptions == 1
    assert starts.count(8) == 2, "from its third block on it was computed twice"
    assert driver.prompt_logprobs["scored"] == [
        token_logprobs(MODEL, PROMPT[:k], PROMPT[k], alternatives=0, vocab_size=VOCAB_SIZE) for k in range(1, 12)
    ]


def test_the_choices_of_a_call_compute_their_prompt_once_and_copy_the_started_block() -> None:
    driver = _driver()
    for index in range(3):
        driver.scheduler.add(request(f"c{index}", prompt=PROMPT, group_id="call"))
    driver.turn()
    driver.turn()

    assert driver.rows_of("c0")[0] == (0, 14)
    assert driver.rows_of("c1") == driver.rows_of("c2") == [(13, 1)]
    leader, *forks = (row.block_table for row in driver.plans[1].plan.sequences)
    assert all(fork[:3] == leader[:3] for fork in forks)
    assert driver.plans[1].plan.block_copies == tuple(
        BlockCopy(source=leader[3], destination=fork[3]) for fork in forks
    )
    driver.run()
    assert all(tokens == expected_tokens(MODEL, PROMPT, max_tokens=8) for tokens in driver.tokens.values())
    # OpenAI's usage counts the prompt once per call: sharing among its own choices is no hit.
    assert driver.cached_tokens() == {"c0": 0, "c1": 0, "c2": 0}


def test_a_choice_whose_prompt_is_scored_computes_it_for_the_others_too() -> None:
    driver = _driver()
    for index in range(3):
        scored = 1 if index == 0 else None
        driver.scheduler.add(request(f"c{index}", prompt=PROMPT, group_id="call", prompt_logprobs=scored))
    driver.run()

    assert [driver.rows_of(f"c{index}")[0] for index in range(3)] == [(0, 14), (13, 1), (13, 1)]
    assert all(tokens == expected_tokens(MODEL, PROMPT, max_tokens=8) for tokens in driver.tokens.values())
    assert len(driver.prompt_logprobs["c0"]) == 13


def test_all_choices_report_what_the_first_found_in_the_cache() -> None:
    driver = _driver()
    driver.scheduler.add(request("before", prompt=PROMPT[:9]))
    driver.run()
    for index in range(2):
        driver.scheduler.add(request(f"c{index}", prompt=PROMPT, group_id="call"))
    driver.run()

    assert driver.cached_tokens() == {"before": 0, "c0": 8, "c1": 8}


def test_a_prompt_that_ends_with_a_block_is_forked_by_copying_its_last_block() -> None:
    driver = _driver(prefix_caching=False)
    for index in range(2):
        driver.scheduler.add(request(f"c{index}", prompt=PROMPT[:8], group_id="call"))
    driver.run()

    assert driver.rows_of("c1")[0] == (7, 1)
    assert driver.tokens["c0"] == driver.tokens["c1"] == expected_tokens(MODEL, PROMPT[:8], max_tokens=8)


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_while_a_call_waits_for_its_prompt_others_pass(*, prefix_caching: bool) -> None:
    driver = _driver(batched_tokens=8, prefix_caching=prefix_caching)
    for index in range(3):
        driver.scheduler.add(request(f"c{index}", prompt=PROMPT, group_id="call"))
    driver.scheduler.add(request("behind", prompt=(9, 9), max_tokens=2))
    driver.turn()

    assert driver.cached_tokens() == {"c0": 0, "behind": 0}
    assert driver.scheduler.stats().waiting == 2
    driver.run()
    assert {name: len(tokens) for name, tokens in driver.tokens.items()} == {"c0": 8, "c1": 8, "c2": 8, "behind": 2}


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_when_the_first_choice_goes_away_the_next_one_leads(*, prefix_caching: bool) -> None:
    driver = _driver(batched_tokens=8, prefix_caching=prefix_caching)
    for index in range(3):
        driver.scheduler.add(request(f"c{index}", prompt=PROMPT, group_id="call"))
    driver.turn()
    driver.scheduler.abort("c0")
    driver.run()

    assert driver.rows_of("c1")[0] == ((8, 6) if prefix_caching else (0, 8))
    assert driver.rows_of("c2")[0] == (13, 1)
    assert driver.tokens["c1"] == driver.tokens["c2"] == expected_tokens(MODEL, PROMPT, max_tokens=8)
    assert driver.finished == {"c1": FinishReason.LENGTH, "c2": FinishReason.LENGTH}


def test_a_choice_with_another_prompt_is_refused_and_leaves_nothing_behind() -> None:
    scheduler = Scheduler(limits())
    scheduler.add(request("c0", prompt=PROMPT, group_id="call"))

    with pytest.raises(ValueError, match="request c1 has another prompt or salt than its group"):
        scheduler.add(request("c1", prompt=(1,), group_id="call"))

    scheduler.check_integrity()
    assert scheduler.stats().waiting == 1
