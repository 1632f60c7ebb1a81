"""Which KV blocks are free and who holds the others: reference counts and a free list, all O(1) per block.

No torch: a block is a number in [0, total). A block may be held more than once, so that sequences can share a
prefix. Freed blocks are reused oldest first, which leaves the most recently used content in place longest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable


class BlockManager:
    """Hands out KV blocks of `block_tokens` tokens each."""

    def __init__(self, *, total_blocks: int, block_tokens: int) -> None:
        if total_blocks < 1 or block_tokens < 1:
            raise ValueError(f"a KV cache of {total_blocks} blocks of {block_tokens} tokens holds nothing")
        self.total_blocks = total_blocks
        self.block_tokens = block_tokens
        # An ordered set: a cached block can leave from the middle in O(1) when it is hit again.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(total_blocks))
        self._holders = [0] * total_blocks
        self._used_blocks = 0

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    @property
    def used_blocks(self) -> int:
        return self._used_blocks

    def blocks_for(self, *, tokens: int) -> int:
        """How many blocks hold `tokens` tokens."""
        return -(-tokens // self.block_tokens)

    def allocate(self, *, count: int) -> list[int]:
        """Takes `count` blocks with one holder each. Raises RuntimeError if there are not enough: ask first."""
        if count > len(self._free):
            raise RuntimeError(f"{count} KV blocks asked for, {len(self._free)} are free")
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._holders[block] = 1
        self._used_blocks += count
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Adds a holder to each block; a free one is taken out of the free list."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._free[block]
                self._used_blocks += 1
            self._holders[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Drops one holder of each block; those without holders become free. A double release raises."""
        for block in blocks:
            if self._holders[block] < 1:
                raise RuntimeError(f"KV block {block} was released more often than it was taken")
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._free[block] = None
                self._used_blocks -= 1

    def check_integrity(self) -> None:
        """Raises RuntimeError unless every block is either free or held, and the counts add up."""
        held = sum(1 for holders in self._holders if holders > 0)
        is_consistent = (
            held == self._used_blocks
            and held + len(self._free) == self.total_blocks
            and all(self._holders[block] == 0 for block in self._free)
        )
        if not is_consistent:
            raise RuntimeError(
                f"KV blocks do not add up: {len(self._free)} free, {held} held, "
                f"{self._used_blocks} counted as used, {self.total_blocks} in total"
            )
