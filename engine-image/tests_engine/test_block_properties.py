"""Any sequence of takes, shares, registrations and releases: each block is held by exactly who counts it."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule
from modelfleet_engine.block_manager import BlockManager
from modelfleet_engine.prefix_cache import block_digest, root_digest

TOTAL_BLOCKS = 12
SALTS = ("", "tenant")

# A chain of blocks: its salt, and the token ids of each block (of one token, so that chains often meet).
Chain = tuple[str, tuple[int, ...]]


class Blocks(RuleBasedStateMachine):
    """Holders take chains of blocks as the scheduler does: what is found is shared, the rest is fresh, then named."""

    holders = Bundle("holders")

    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(total_blocks=TOTAL_BLOCKS, block_tokens=1)
        self.held: dict[int, list[int]] = {}
        # What was last said to be in a block: the whole chain up to it.
        self.content: dict[int, Chain] = {}
        self.next_holder = 0

    @rule(target=holders, salt=st.sampled_from(SALTS), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=5))
    def take(self, salt: str, tokens: list[int]) -> int | object:
        digests = [root_digest(salt)]
        for token in tokens:
            digests.append(block_digest(digests[-1], (token,)))
        found = []
        for index, digest in enumerate(digests[1:]):
            block = self.manager.find(digest)
            if block is None:
                break
            assert self.content[block] == (salt, tuple(tokens[: index + 1]))
            found.append(block)
        taken = len(tokens) - len(found) + sum(self.manager.is_free(block) for block in found)
        if taken > self.manager.free_blocks:
            return multiple()
        self.manager.share(found)
        blocks = found + self.manager.allocate(count=len(tokens) - len(found))
        self._forget_evicted()
        for index in range(len(found), len(tokens)):
            self.content[blocks[index]] = (salt, tuple(tokens[: index + 1]))
            assert self.manager.register(blocks[index], digest=digests[index + 1]) == blocks[index]
        self.next_holder += 1
        self.held[self.next_holder] = blocks
        return self.next_holder

    @rule(target=holders, count=st.integers(1, 4))
    def take_without_content(self, count: int) -> int | object:
        if count > self.manager.free_blocks:
            return multiple()
        blocks = self.manager.allocate(count=count)
        self._forget_evicted()
        for block in blocks:
            self.content.pop(block, None)
        self.next_holder += 1
        self.held[self.next_holder] = blocks
        return self.next_holder

    @rule(target=holders, of=holders, keep=st.integers(1, 5))
    def fork(self, of: int, keep: int) -> int:
        blocks = self.held[of][:keep]
        self.manager.share(blocks)
        self.next_holder += 1
        self.held[self.next_holder] = blocks
        return self.next_holder

    @rule(holder=consumes(holders))
    def release(self, holder: int) -> None:
        self.manager.release(self.held.pop(holder))

    @invariant()
    def held_and_free_are_all(self) -> None:
        self.manager.check_integrity()
        counted = Counter(block for blocks in self.held.values() for block in blocks)
        assert {block: count for block, count in enumerate(self.manager._holders) if count} == dict(counted)
        assert self.manager.used_blocks == len(counted)
        assert self.manager.used_blocks + self.manager.free_blocks == TOTAL_BLOCKS

    @invariant()
    def the_index_has_no_hole_and_no_wrong_content(self) -> None:
        indexed = {self.content[block] for block in self.manager._digest_of}
        assert len(indexed) == len(self.manager._digest_of), "two blocks in the index have one content"
        assert all(len(tokens) == 1 or (salt, tokens[:-1]) in indexed for salt, tokens in indexed)

    def _forget_evicted(self) -> None:
        for block in self.manager.take_evicted():
            del self.content[block]

    def teardown(self) -> None:
        for blocks in self.held.values():
            self.manager.release(blocks)
        assert (self.manager.used_blocks, self.manager.free_blocks) == (0, TOTAL_BLOCKS)
        self.manager.check_integrity()


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True, database=None)
