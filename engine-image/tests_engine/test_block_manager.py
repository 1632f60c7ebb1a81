"""The block manager: who holds which KV block."""

from __future__ import annotations

import random

import pytest
from modelfleet_engine.block_manager import BlockManager


def test_blocks_are_handed_out_once_and_come_back() -> None:
    manager = BlockManager(total_blocks=4, block_tokens=16)

    taken = manager.allocate(count=3)

    assert (sorted(taken), manager.free_blocks, manager.used_blocks) == ([0, 1, 2], 1, 3)
    manager.release(taken)
    assert (manager.free_blocks, manager.used_blocks) == (4, 0)
    manager.check_integrity()


def test_the_block_freed_longest_ago_is_reused_first() -> None:
    manager = BlockManager(total_blocks=3, block_tokens=16)
    first, second, third = manager.allocate(count=3)

    manager.release([second])
    manager.release([first, third])

    assert manager.allocate(count=3) == [second, first, third]


def test_a_shared_block_is_free_only_after_its_last_holder() -> None:
    manager = BlockManager(total_blocks=2, block_tokens=16)
    blocks = manager.allocate(count=1)
    manager.share(blocks)

    manager.release(blocks)
    assert manager.used_blocks == 1
    manager.release(blocks)
    assert manager.used_blocks == 0


def test_a_free_block_can_be_taken_back_into_use_by_its_number() -> None:
    manager = BlockManager(total_blocks=3, block_tokens=16)
    blocks = manager.allocate(count=2)
    manager.release(blocks)

    manager.share([blocks[1]])

    assert (manager.used_blocks, manager.free_blocks) == (1, 2)
    assert blocks[1] not in manager.allocate(count=2)
    manager.check_integrity()


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2), (160, 10), (161, 11)])
def test_a_started_block_counts_whole(tokens: int, blocks: int) -> None:
    assert BlockManager(total_blocks=1, block_tokens=16).blocks_for(tokens=tokens) == blocks


def test_asking_for_more_than_is_free_is_a_bug() -> None:
    manager = BlockManager(total_blocks=2, block_tokens=16)

    with pytest.raises(RuntimeError, match="3 KV blocks asked for, 2 are free"):
        manager.allocate(count=3)


def test_releasing_twice_is_a_bug() -> None:
    manager = BlockManager(total_blocks=2, block_tokens=16)
    blocks = manager.allocate(count=1)
    manager.release(blocks)

    with pytest.raises(RuntimeError, match="released more often"):
        manager.release(blocks)


def test_a_leaked_block_is_noticed() -> None:
    manager = BlockManager(total_blocks=2, block_tokens=16)
    manager.allocate(count=1)
    manager._holders[0] = 0

    with pytest.raises(RuntimeError, match="do not add up: 1 free, 0 held, 1 counted"):
        manager.check_integrity()


def test_the_counts_add_up_whatever_happens() -> None:
    chance = random.Random(7)
    manager = BlockManager(total_blocks=50, block_tokens=16)
    held: list[list[int]] = []
    for _ in range(2000):
        action = chance.choice(["take", "share", "give"])
        if action == "take" and manager.free_blocks:
            held.append(manager.allocate(count=chance.randint(1, manager.free_blocks)))
        elif action == "share" and held:
            blocks = list(chance.choice(held))
            manager.share(blocks)
            held.append(blocks)
        elif held:
            manager.release(held.pop(chance.randrange(len(held))))
        manager.check_integrity()
        assert manager.used_blocks == len({block for blocks in held for block in blocks})
