"""Which KV blocks are free, who holds the others, and which content a block has: all O(1) per block.

No torch: a block is a number in [0, total). A block may be held more than once, so that sequences share a prefix.
A full block whose content is known is registered under a digest and can be found again, also after its last holder
let go, until it is evicted. Blocks without registered content are reused first, then the least recently used.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable


class BlockManager:
    """Hands out KV blocks of `block_tokens` tokens each and remembers the content of full ones."""

    def __init__(self, *, total_blocks: int, block_tokens: int) -> None:
        if total_blocks < 1 or block_tokens < 1:
            raise ValueError(f"a KV cache of {total_blocks} blocks of {block_tokens} tokens holds nothing")
        self.total_blocks = total_blocks
        self.block_tokens = block_tokens
        # Free blocks without content, the last freed on top: its memory is the most likely to be in a CPU's cache.
        self._blank = list(reversed(range(total_blocks)))
        # Free blocks with content, least recently used first: one can leave from the middle when it is found again.
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._holders = [0] * total_blocks
        self._used_blocks = 0
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}
        self._evicted: list[int] = []

    @property
    def free_blocks(self) -> int:
        """Blocks nobody holds, with or without content."""
        return len(self._blank) + len(self._cached)

    @property
    def used_blocks(self) -> int:
        return self._used_blocks

    @property
    def cached_blocks(self) -> int:
        """Free blocks whose content can still be found."""
        return len(self._cached)

    def blocks_for(self, *, tokens: int) -> int:
        """How many blocks hold `tokens` tokens."""
        return -(-tokens // self.block_tokens)

    def is_free(self, block: int) -> bool:
        return self._holders[block] == 0

    def allocate(self, *, count: int) -> list[int]:
        """Takes `count` blocks with one holder each. Raises RuntimeError if there are not enough: ask first."""
        if count > self.free_blocks:
            raise RuntimeError(f"{count} KV blocks asked for, {self.free_blocks} are free")
        blocks = [self._blank.pop() if self._blank else self._evict() for _ in range(count)]
        for block in blocks:
            self._holders[block] = 1
        self._used_blocks += count
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Adds a holder to each block; a free one must have content and is taken out of the free ones."""
        for block in blocks:
            if self._holders[block] == 0:
                if block not in self._cached:
                    raise RuntimeError(f"KV block {block} is shared, but it is free and has no content")
                del self._cached[block]
                self._used_blocks += 1
            self._holders[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Drops one holder of each block of a sequence, given in order. A double release raises RuntimeError.

        The sequence's tail becomes the first to be evicted: without its head it could not be found anyway.
        """
        for block in reversed(list(blocks)):
            if self._holders[block] < 1:
                raise RuntimeError(f"KV block {block} was released more often than it was taken")
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._used_blocks -= 1
                if block in self._digest_of:
                    self._cached[block] = None
                else:
                    self._blank.append(block)

    def register(self, block: int, *, digest: bytes) -> int:
        """Says what a held, full block contains; from now on nobody may write to it.

        Returns the block to use from now on: another one if that has the same content and was there first. Only that
        one is kept in the index; the caller holds its own until it releases it.
        """
        if self._holders[block] < 1:
            raise RuntimeError(f"KV block {block} is registered, but nobody holds it")
        known = self._block_of.setdefault(digest, block)
        if known == block:
            self._digest_of[block] = digest
        return known

    def find(self, digest: bytes) -> int | None:
        """The block with this content, held or free; None if there is none (any more)."""
        return self._block_of.get(digest)

    def take_evicted(self) -> list[int]:
        """Blocks that lost their content since this was last asked, in order."""
        evicted, self._evicted = self._evicted, []
        return evicted

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        del self._block_of[self._digest_of.pop(block)]
        self._evicted.append(block)
        return block

    def check_integrity(self) -> None:
        """Raises RuntimeError unless every block is free or held, the counts add up and the index is one to one."""
        held = sum(1 for holders in self._holders if holders > 0)
        free = {*self._blank, *self._cached}
        is_consistent = (
            held == self._used_blocks
            and held + self.free_blocks == self.total_blocks
            and len(free) == self.free_blocks
            and all(self._holders[block] == 0 for block in free)
        )
        if not is_consistent:
            raise RuntimeError(
                f"KV blocks do not add up: {self.free_blocks} free, {held} held, "
                f"{self._used_blocks} counted as used, {self.total_blocks} in total"
            )
        is_one_to_one = self._block_of == {digest: block for block, digest in self._digest_of.items()}
        if not is_one_to_one or self._cached.keys() - self._digest_of.keys():
            raise RuntimeError(f"the prefix index of {len(self._digest_of)} KV blocks is not one to one")
