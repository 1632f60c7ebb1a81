"""A priority queue from which any item can leave: O(log n) to add and to take, O(1) to discard. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)
Key = tuple[float, ...]


class LazyHeap(Generic[Item]):
    """Items by their key, smallest first; equal keys leave in the order in which they came.

    A discarded item's entry stays until it comes to the top; with more such entries than items the heap is built anew.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[Key, int, Item]] = []
        self._pushes = 0
        # The push that counts: an item may have been discarded and pushed again.
        self._push_of: dict[Item, int] = {}

    def __len__(self) -> int:
        return len(self._push_of)

    def push(self, item: Item, *, key: Key) -> None:
        """Adds an item. Raises ValueError if it is there already."""
        if item in self._push_of:
            raise ValueError(f"{item!r} is queued already")
        self._pushes += 1
        self._push_of[item] = self._pushes
        heapq.heappush(self._heap, (key, self._pushes, item))

    def first(self) -> Item | None:
        """The item with the smallest key; None if there is none."""
        while self._heap:
            _, push, item = self._heap[0]
            if self._push_of.get(item) == push:
                return item
            heapq.heappop(self._heap)
        return None

    def discard(self, item: Item) -> bool:
        """Removes an item; False if it was not there."""
        if self._push_of.pop(item, None) is None:
            return False
        if len(self._heap) > 2 * len(self._push_of) + 16:
            self._heap = [entry for entry in self._heap if self._push_of.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)
        return True
