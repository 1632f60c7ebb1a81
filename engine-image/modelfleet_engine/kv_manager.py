"""Gives sequences their KV blocks: found in the prefix cache, shared with a sibling, or fresh. Pure.

Must not know queues, budgets or steps: `scheduler` decides who gets blocks, this how.

Blocks are registered in the index when the step that fills them is planned: the device runs steps in order, so any
later step may read them. A sequence whose block turns out to be a copy of a registered one takes that one instead.
So whoever holds a registered block holds all before it, blocks leave tail first, and the index never has a hole: a
block in it can always be reached from its chain's start. For the same reason blocks are free at once when their
sequence goes, though steps in flight may still write to them: whoever gets them writes and reads later.
"""

from __future__ import annotations

from modelfleet_engine.block_manager import BlockManager
from modelfleet_engine.kv_events import ResidentHashes, hashes_by_block
from modelfleet_engine.prefix_cache import block_digest, root_digest
from modelfleet_engine.request import KvEvents
from modelfleet_engine.sequence import Sequence
from modelfleet_engine.step_plan import BlockCopy


class KvManager:
    """The blocks of all sequences."""

    def __init__(self, *, total_blocks: int, block_tokens: int, prefix_caching: bool) -> None:
        self.blocks = BlockManager(total_blocks=total_blocks, block_tokens=block_tokens)
        self._block_tokens = block_tokens
        self._prefix_caching = prefix_caching
        self._resident = ResidentHashes()
        self._copies: list[BlockCopy] = []
        # Tokens of prompts that were looked up in the prefix cache, and how many of them were found.
        self.queried_tokens = 0
        self.hit_tokens = 0

    def try_start(self, sequence: Sequence, *, reserved_blocks: int) -> bool:
        """Gives a sequence blocks for all its known tokens, found or fresh; False if fewer than reserved would remain.

        Its `computed_tokens` are those that were found.
        """
        if self.blocks.free_blocks <= reserved_blocks:
            return False
        found = self._match(sequence)
        fresh = self.blocks.blocks_for(tokens=sequence.known_tokens) - len(found)
        taken = fresh + sum(1 for block in found if self.blocks.is_free(block))
        if self.blocks.free_blocks < taken + reserved_blocks:
            return False
        self.blocks.share(found)
        self._attach_hashes(sequence, found)
        sequence.block_table = found + self._allocate(fresh)
        sequence.registered_blocks = len(found)
        sequence.computed_tokens = len(found) * self._block_tokens
        if self._prefix_caching and not sequence.was_planned and sequence.request.prompt_logprobs is None:
            self.queried_tokens += sequence.known_tokens
            self.hit_tokens += sequence.computed_tokens
        return True

    def try_fork(self, sequence: Sequence, *, source: Sequence, reserved_blocks: int) -> bool:
        """Gives a new sequence the prompt of a sibling that has computed it; False if there is no room.

        Full blocks are shared. The block of the last prompt token is copied, for that token is computed again (its
        logits are needed) and the tokens after it differ.
        """
        if self.blocks.free_blocks < 1 + reserved_blocks:
            return False
        shared = (sequence.prompt_tokens - 1) // self._block_tokens
        blocks = source.block_table[:shared]
        self.blocks.share(blocks)
        (own,) = self._allocate(1)
        if (sequence.prompt_tokens - 1) % self._block_tokens:
            self._copies.append(BlockCopy(source=source.block_table[shared], destination=own))
        sequence.block_table = [*blocks, own]
        sequence.digests = source.digests[:shared]
        sequence.registered_blocks = min(shared, source.registered_blocks)
        sequence.computed_tokens = sequence.prompt_tokens - 1
        return True

    def missing_blocks(self, sequence: Sequence) -> int:
        """How many blocks its next token needs that neither it has nor are free."""
        needed = self.blocks.blocks_for(tokens=sequence.computed_tokens + 1) - len(sequence.block_table)
        return max(0, needed - self.blocks.free_blocks)

    def grow(self, sequence: Sequence) -> None:
        """Makes room for the next token. Raises RuntimeError if blocks are missing."""
        needed = self.blocks.blocks_for(tokens=sequence.computed_tokens + 1) - len(sequence.block_table)
        if needed > 0:
            sequence.block_table.extend(self._allocate(needed))

    def register(self, sequence: Sequence) -> None:
        """Enters the blocks that are full by now, and whose tokens are known, into the index."""
        full = min(sequence.computed_tokens, sequence.known_tokens) // self._block_tokens
        if not self._prefix_caching or full <= sequence.registered_blocks:
            return
        for index in range(sequence.registered_blocks, full):
            own = sequence.block_table[index]
            block = self.blocks.register(own, digest=self._digest(sequence, index))
            if block != own:
                self.blocks.share([block])
                self.blocks.release([own])
                sequence.replace_block(index, block)
        self._attach_hashes(sequence, sequence.block_table[:full], start=sequence.registered_blocks)
        sequence.registered_blocks = full

    def release(self, sequence: Sequence) -> None:
        """Takes a sequence's blocks; what is registered of them can be found until it is evicted."""
        self.register(sequence)
        self.blocks.release(sequence.leave_place())

    def take_copies(self) -> tuple[BlockCopy, ...]:
        """The copies that the next step must begin with."""
        copies, self._copies = tuple(self._copies), []
        return copies

    def take_events(self) -> KvEvents | None:
        """What became resident and what was evicted since this was last asked."""
        return self._resident.take()

    def _match(self, sequence: Sequence) -> list[int]:
        """The longest chain of registered blocks that the sequence begins with."""
        found: list[int] = []
        if not self._prefix_caching:
            return found
        for index in range(sequence.reusable_tokens // self._block_tokens):
            block = self.blocks.find(self._digest(sequence, index))
            if block is None:
                break
            found.append(block)
        return found

    def _digest(self, sequence: Sequence, index: int) -> bytes:
        """The digest of a full block of known tokens: each is computed once in a sequence's life."""
        digests = sequence.digests
        while len(digests) <= index:
            parent = digests[-1] if digests else root_digest(sequence.request.cache_salt)
            token_ids = sequence.token_ids(start=len(digests) * self._block_tokens, count=self._block_tokens)
            digests.append(block_digest(parent, token_ids))
        return digests[index]

    def _attach_hashes(self, sequence: Sequence, blocks: list[int], *, start: int = 0) -> None:
        """Tells which text-block hashes end with blocks [start, len(blocks)) of the sequence."""
        is_past_prompt = start * self._block_tokens >= sequence.prompt_tokens
        if not sequence.request.prefix_hashes or is_past_prompt or start >= len(blocks):
            return
        ending = hashes_by_block(
            sequence.request.prefix_hashes, prompt_tokens=sequence.prompt_tokens, block_tokens=self._block_tokens
        )
        for index in range(start, len(blocks)):
            if index in ending:
                self._resident.attach(blocks[index], ending[index])

    def _allocate(self, count: int) -> list[int]:
        blocks = self.blocks.allocate(count=count)
        for evicted in self.blocks.take_evicted():
            self._resident.evict(evicted)
        return blocks
