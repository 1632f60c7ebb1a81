"""The queue from which anything can leave at once, and the order of those that wait."""

from __future__ import annotations

import random

import pytest
from modelfleet_engine.lazy_heap import LazyHeap


def test_items_leave_by_key_and_equals_in_the_order_in_which_they_came() -> None:
    heap: LazyHeap[str] = LazyHeap()
    for item, key in (("c", 2.0), ("a", 1.0), ("b", 1.0)):
        heap.push(item, key=(key,))

    order = []
    while (first := heap.first()) is not None:
        order.append(first)
        heap.discard(first)

    assert order == ["a", "b", "c"]
    assert len(heap) == 0


def test_an_item_that_left_and_came_back_counts_with_its_new_key() -> None:
    heap: LazyHeap[str] = LazyHeap()
    heap.push("moves", key=(1,))
    heap.push("stays", key=(2,))
    heap.discard("moves")
    heap.push("moves", key=(3,))

    assert (heap.first(), len(heap)) == ("stays", 2)
    heap.discard("stays")
    assert heap.first() == "moves"


def test_an_item_cannot_be_queued_twice() -> None:
    heap: LazyHeap[str] = LazyHeap()
    heap.push("a", key=(1,))

    with pytest.raises(ValueError, match="'a' is queued already"):
        heap.push("a", key=(2,))
    assert heap.discard("b") is False


def test_entries_of_items_that_left_do_not_pile_up() -> None:
    heap: LazyHeap[int] = LazyHeap()
    heap.push(-1, key=(0,))
    for item in range(10_000):
        heap.push(item, key=(1 + item,))
        heap.discard(item)

    assert len(heap._heap) <= 2 * len(heap) + 17


def test_it_agrees_with_a_sorted_list_whatever_happens() -> None:
    chance = random.Random(3)
    heap: LazyHeap[int] = LazyHeap()
    items: dict[int, tuple[int, int]] = {}
    for turn in range(3000):
        if chance.random() < 0.5:
            key = chance.randrange(20)
            heap.push(turn, key=(key,))
            items[turn] = (key, turn)
        elif items:
            gone = chance.choice(list(items)) if chance.random() < 0.5 else min(items, key=lambda item: items[item])
            assert heap.discard(gone) is True
            del items[gone]
        assert heap.first() == min(items, key=lambda item: items[item], default=None)
        assert len(heap) == len(items)
