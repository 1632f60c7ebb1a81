"""Which text blocks each pod is believed to have cached: guessed from what it was sent, corrected by KV events. PURE.

Inverted: a block's hash leads to the pods that hold it, as bits of one integer. So a prompt's match on all pods costs
one look-up and one AND per block, whatever the number of pods.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import repeat


class _Pod:
    """The blocks of one pod, least recently used first, and its bit."""

    __slots__ = ("bit", "blocks", "restarts")

    def __init__(self, bit: int) -> None:
        self.bit = bit
        self.restarts: int | None = None
        self.blocks: OrderedDict[str, None] = OrderedDict()


class PrefixIndex:
    """At most `capacity_blocks` blocks for each pod; the least recently used go first, the ends of prompts before
    their beginnings."""

    def __init__(self, capacity_blocks: int) -> None:
        self._capacity_blocks = capacity_blocks
        self._pods: dict[str, _Pod] = {}
        self._holders: dict[str, int] = {}
        self._bit_of: dict[str, int] = {}
        # By the bit's number.
        self._uid_of_bit: list[str] = []
        self._free_bits: list[int] = []

    def record(self, uid: str, restarts: int, blocks: Sequence[str]) -> None:
        """The pod was sent a prompt with these blocks. Other `restarts` than before: it had lost what it knew."""
        pod = self._pod(uid)
        if pod.restarts is not None and pod.restarts != restarts:
            self._clear(pod)
        pod.restarts = restarts
        self._store(pod, blocks)

    def matches(self, blocks: Sequence[str], uids: Iterable[str]) -> dict[str, int]:
        """How many leading blocks each of these pods is believed to hold."""
        matched = dict.fromkeys(uids, 0)
        remaining = sum(map(self._bit_of.get, matched, repeat(0)))
        depth = 0
        for holders in map(self._holders.get, blocks):
            still = 0 if holders is None else remaining & holders
            if still != remaining:
                self._note(remaining ^ still, depth, matched)
                remaining = still
                if not still:
                    break
            depth += 1
        self._note(remaining, depth, matched)
        return matched

    def apply(self, uid: str, *, snapshot: bool, stored: Sequence[str], evicted: Sequence[str]) -> None:
        """What the engine itself says (`protocol.KvEvent`); a snapshot is everything it holds."""
        pod = self._pod(uid)
        if snapshot:
            self._clear(pod)
        for block in evicted:
            if block in pod.blocks:
                self._drop(pod, block)
        self._store(pod, stored)

    def forget(self, uid: str) -> None:
        """The pod is gone; its bit is free for another."""
        pod = self._pods.pop(uid, None)
        if pod is not None:
            self._clear(pod)
            self._free_bits.append(self._bit_of.pop(uid).bit_length() - 1)

    def blocks_of(self, uid: str) -> int:
        """How many blocks the pod is believed to hold."""
        pod = self._pods.get(uid)
        return 0 if pod is None else len(pod.blocks)

    def _pod(self, uid: str) -> _Pod:
        pod = self._pods.get(uid)
        if pod is None:
            if self._free_bits:
                number = self._free_bits.pop()
                self._uid_of_bit[number] = uid
            else:
                number = len(self._uid_of_bit)
                self._uid_of_bit.append(uid)
            self._bit_of[uid] = 1 << number
            pod = self._pods[uid] = _Pod(1 << number)
        return pod

    def _store(self, pod: _Pod, blocks: Sequence[str]) -> None:
        """From the last to the first: the first is the most recent then, and outlives those that need it."""
        held, holders, bit = pod.blocks, self._holders, pod.bit
        for block in reversed(blocks[: self._capacity_blocks]):
            if block in held:
                held.move_to_end(block)
            else:
                held[block] = None
                holders[block] = holders.get(block, 0) | bit
        while len(held) > self._capacity_blocks:
            self._drop(pod, next(iter(held)))

    def _drop(self, pod: _Pod, block: str) -> None:
        del pod.blocks[block]
        others = self._holders[block] & ~pod.bit
        if others:
            self._holders[block] = others
        else:
            del self._holders[block]

    def _clear(self, pod: _Pod) -> None:
        for block in list(pod.blocks):
            self._drop(pod, block)

    def _note(self, bits: int, depth: int, matched: dict[str, int]) -> None:
        """These pods hold the first `depth` blocks and no more; 0 is what is noted of all from the start."""
        if depth == 0:
            return
        uid_of_bit = self._uid_of_bit
        while bits:
            number = bits.bit_length() - 1
            matched[uid_of_bit[number]] = depth
            bits ^= 1 << number
