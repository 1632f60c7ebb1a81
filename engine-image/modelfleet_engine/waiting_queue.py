"""The requests that wait for a place, in the order in which they get one. Pure."""

from __future__ import annotations

from modelfleet_engine.lazy_heap import LazyHeap
from modelfleet_engine.sequence import Sequence


class WaitingQueue:
    """Lower priority first, but waiting counts too: see `Sequence.due_seconds`; then by arrival.

    Whoever had a place and lost it came before those who never had one, so it stands before them again.
    `tokens` is the work that waits: what these sequences must compute, were nothing of it cached.
    """

    def __init__(self) -> None:
        self._heap: LazyHeap[Sequence] = LazyHeap()
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, sequence: Sequence) -> None:
        """Adds a sequence that has no place."""
        self._heap.push(sequence, key=(sequence.due_seconds, sequence.arrival))
        self.tokens += sequence.total_tokens

    def first(self) -> Sequence | None:
        """Who is next; None if nobody waits."""
        return self._heap.first()

    def remove(self, sequence: Sequence) -> bool:
        """Takes a sequence out, wherever it stands; False if it is not here."""
        if not self._heap.discard(sequence):
            return False
        self.tokens -= sequence.total_tokens
        return True
