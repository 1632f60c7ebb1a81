"""Which key goes next and when: exact times, no clock."""

from __future__ import annotations

import asyncio

import pytest
from modelfleet_kube.backoff import Backoff
from modelfleet_kube.dirty_set import DirtyKeys, DirtySet, Priority

STARTED, NEW = Priority.STARTED, Priority.NEW


def keys() -> DirtyKeys[str]:
    return DirtyKeys(backoff=Backoff(initial_seconds=1.0, maximum_seconds=8.0))


def drain(dirty: DirtyKeys[str], *, now: float = 0.0) -> list[str]:
    taken = []
    while (key := dirty.take(now=now)) is not None:
        taken.append(key)
        dirty.done(key)
    return taken


def test_a_key_marked_twice_is_taken_once() -> None:
    dirty = keys()
    dirty.add("a", priority=NEW)
    dirty.add("a", priority=NEW)
    assert (len(dirty), drain(dirty), len(dirty)) == (1, ["a"], 0)


def test_started_keys_go_before_new_ones_and_each_kind_in_order_of_arrival() -> None:
    dirty = keys()
    for key, priority in (("n1", NEW), ("s1", STARTED), ("n2", NEW), ("s2", STARTED)):
        dirty.add(key, priority=priority)
    assert drain(dirty) == ["s1", "s2", "n1", "n2"]


def test_a_new_key_that_has_started_meanwhile_moves_up_and_never_down() -> None:
    dirty = keys()
    dirty.add("n", priority=NEW)
    dirty.add("k", priority=NEW)
    dirty.add("k", priority=STARTED)
    dirty.add("k", priority=NEW)
    assert drain(dirty) == ["k", "n"]


def test_an_active_key_is_given_to_no_second_worker_and_comes_again_when_marked_meanwhile() -> None:
    dirty = keys()
    dirty.add("a", priority=NEW)
    assert dirty.take(now=0.0) == "a"
    dirty.add("a", priority=NEW)
    assert dirty.take(now=0.0) is None
    dirty.done("a")
    assert dirty.take(now=0.0) == "a"
    dirty.done("a")
    assert dirty.take(now=0.0) is None


def test_a_delayed_key_comes_at_its_time_and_the_earlier_time_wins() -> None:
    dirty = keys()
    dirty.add_at("a", due=10.0, priority=NEW)
    dirty.add_at("a", due=5.0, priority=NEW)
    dirty.add_at("a", due=7.0, priority=NEW)
    assert (dirty.next_due(), dirty.delayed_count) == (5.0, 1)
    assert dirty.take(now=4.999) is None
    assert drain(dirty, now=5.0) == ["a"]
    assert drain(dirty, now=100.0) == []
    assert dirty.next_due() is None


def test_a_pass_before_its_time_cancels_a_delayed_key() -> None:
    dirty = keys()
    dirty.add_at("a", due=5.0, priority=NEW)
    dirty.add("a", priority=NEW)
    assert drain(dirty, now=1.0) == ["a"]
    assert (drain(dirty, now=10.0), dirty.next_due()) == ([], None)


def test_failures_back_off_per_key_with_jitter_and_success_resets() -> None:
    dirty = keys()
    delays = [dirty.fail("a", now=0.0, random_unit=0.0) for _ in range(5)]
    assert delays == [0.5, 1.0, 2.0, 4.0, 4.0]
    assert dirty.fail("b", now=0.0, random_unit=0.5) == 0.75
    dirty.succeed("a")
    assert dirty.fail("a", now=0.0, random_unit=1.0) == 1.0


def test_a_delay_that_the_server_asked_for_is_kept() -> None:
    assert keys().fail("a", now=0.0, random_unit=0.0, at_least_seconds=7.0) == 7.0


def test_a_failed_key_comes_back_at_its_time_also_while_others_are_busy() -> None:
    dirty = keys()
    dirty.add("a", priority=NEW)
    assert dirty.take(now=100.0) == "a"
    dirty.fail("a", now=100.0, random_unit=0.0)
    dirty.done("a")
    assert dirty.take(now=100.4) is None
    assert dirty.take(now=100.5) == "a"


def test_backoff_counts_attempts_from_one() -> None:
    with pytest.raises(ValueError, match="counts from 1"):
        Backoff().delay_seconds(0, random_unit=0.0)
    assert Backoff(maximum_seconds=60.0).delay_seconds(10_000, random_unit=1.0) == 60.0


def dirty_set() -> DirtySet[str]:
    clock = asyncio.get_running_loop().time
    return DirtySet(clock=clock, random_unit=lambda: 0.0, backoff=Backoff(initial_seconds=0.02))


async def test_waiting_workers_get_each_key_once() -> None:
    dirty = dirty_set()
    workers = [asyncio.create_task(dirty.take()) for _ in range(3)]
    await asyncio.sleep(0)
    for key in ("a", "b", "c"):
        dirty.add(key)
    assert sorted(await asyncio.gather(*workers)) == ["a", "b", "c"]


async def test_a_waiting_worker_wakes_for_a_delayed_key_although_the_one_that_kept_the_time_is_busy() -> None:
    dirty = dirty_set()
    first, second = asyncio.create_task(dirty.take()), asyncio.create_task(dirty.take())
    await asyncio.sleep(0)
    dirty.add("late", delay_seconds=0.03)
    await asyncio.sleep(0)
    dirty.add("now-1")
    assert await asyncio.wait_for(first, 1) == "now-1"
    assert await asyncio.wait_for(second, 1) == "late"


async def test_a_worker_cancelled_as_it_is_woken_passes_the_key_on() -> None:
    dirty = dirty_set()
    first, second = asyncio.create_task(dirty.take()), asyncio.create_task(dirty.take())
    await asyncio.sleep(0)
    dirty.add("a")
    first.cancel()
    assert await asyncio.wait_for(second, 1) == "a"


async def test_a_failed_key_is_taken_again_after_its_delay() -> None:
    dirty = dirty_set()
    dirty.add("a")
    key = await dirty.take()
    assert dirty.fail(key) == 0.01
    dirty.done(key)
    assert await asyncio.wait_for(dirty.take(), 1) == "a"
