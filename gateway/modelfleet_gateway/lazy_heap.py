"""A priority queue whose items can leave or move: O(log n) to add, to move and to take, O(1) to discard. PURE."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)
Key = tuple[float, ...]


class LazyHeap(Generic[Item]):
    """Items by their key, smallest first; equal keys leave in the order in which they were put.

    An entry that no longer counts stays until it comes to the top; with more of them than items the heap is built anew.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[Key, int, Item]] = []
        self._puts = 0
        # The put that counts: an item may have been discarded, or put again with another key.
        self._put_of: dict[Item, int] = {}

    def __len__(self) -> int:
        return len(self._put_of)

    def __contains__(self, item: object) -> bool:
        return item in self._put_of

    def put(self, item: Item, *, key: Key) -> None:
        """Adds an item, or moves the one that is there to another key."""
        self._puts += 1
        self._put_of[item] = self._puts
        heapq.heappush(self._heap, (key, self._puts, item))
        self._compact()

    def first(self) -> Item | None:
        """The item with the smallest key; None if there is none."""
        self._drop_dead()
        return self._heap[0][2] if self._heap else None

    def first_key(self) -> Key | None:
        """The smallest key; None if there is no item."""
        self._drop_dead()
        return self._heap[0][0] if self._heap else None

    def discard(self, item: Item) -> None:
        """Takes an item out, if it is there."""
        if self._put_of.pop(item, None) is not None:
            self._compact()

    def _drop_dead(self) -> None:
        while self._heap and self._put_of.get(self._heap[0][2]) != self._heap[0][1]:
            heapq.heappop(self._heap)

    def _compact(self) -> None:
        if len(self._heap) > 2 * len(self._put_of) + 16:
            self._heap = [entry for entry in self._heap if self._put_of.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)
