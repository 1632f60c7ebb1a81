"""The block manager: who holds which KV block, and what a block contains."""

from __future__ import annotations

import pytest
from modelfleet_engine.block_manager import BlockManager


def _manager(total_blocks: int) -> BlockManager:
    return BlockManager(total_blocks=total_blocks, block_tokens=16)


def _registered(manager: BlockManager, *digests: bytes) -> list[int]:
    """Blocks with these contents, in order, held once each."""
    blocks = manager.allocate(count=len(digests))
    assert [manager.register(block, digest=digest) for block, digest in zip(blocks, digests, strict=True)] == blocks
    return blocks


def test_blocks_are_handed_out_once_and_come_back() -> None:
    manager = _manager(4)

    taken = manager.allocate(count=3)

    assert (sorted(taken), manager.free_blocks, manager.used_blocks) == ([0, 1, 2], 1, 3)
    manager.release(taken)
    assert (manager.free_blocks, manager.used_blocks) == (4, 0)
    manager.check_integrity()


def test_a_shared_block_is_free_only_after_its_last_holder() -> None:
    manager = _manager(2)
    blocks = manager.allocate(count=1)
    manager.share(blocks)

    manager.release(blocks)
    assert manager.used_blocks == 1
    manager.release(blocks)
    assert manager.used_blocks == 0


def test_content_is_found_after_its_last_holder_let_go() -> None:
    manager = _manager(3)
    blocks = _registered(manager, b"a", b"b")
    manager.release(blocks)
    assert (manager.used_blocks, manager.cached_blocks, manager.find(b"b")) == (0, 2, blocks[1])

    manager.share([blocks[1]])

    assert (manager.used_blocks, manager.free_blocks) == (1, 2)
    assert blocks[1] not in manager.allocate(count=2)
    manager.check_integrity()


def test_blocks_without_content_are_reused_before_any_content_is_evicted() -> None:
    manager = _manager(4)
    cached = _registered(manager, b"a", b"b")
    plain = manager.allocate(count=2)
    manager.release(plain)
    manager.release(cached)

    assert sorted(manager.allocate(count=2)) == sorted(plain)
    assert manager.take_evicted() == []
    assert [manager.find(b"a"), manager.find(b"b")] == cached


def test_the_least_recently_used_is_evicted_first_and_a_sequences_tail_before_its_head() -> None:
    manager = _manager(4)
    first = _registered(manager, b"a0", b"a1")
    second = _registered(manager, b"b0", b"b1")
    manager.release(first)
    manager.release(second)
    # Used again: now the first is the most recently used.
    manager.share(first)
    manager.release(first)

    order = [manager.allocate(count=1)[0] for _ in range(4)]

    assert order == [second[1], second[0], first[1], first[0]]
    assert manager.take_evicted() == order
    assert manager.take_evicted() == []
    assert manager.find(b"a0") is None
    manager.check_integrity()


def test_of_two_blocks_with_one_content_the_first_is_kept() -> None:
    manager = _manager(2)
    (first,) = _registered(manager, b"same")
    (second,) = manager.allocate(count=1)

    assert manager.register(second, digest=b"same") == first

    manager.release([second])
    assert (manager.cached_blocks, manager.free_blocks) == (0, 1)
    assert manager.find(b"same") == first
    manager.check_integrity()


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2), (160, 10), (161, 11)])
def test_a_started_block_counts_whole(tokens: int, blocks: int) -> None:
    assert _manager(1).blocks_for(tokens=tokens) == blocks


def test_asking_for_more_than_is_free_is_a_bug() -> None:
    with pytest.raises(RuntimeError, match="3 KV blocks asked for, 2 are free"):
        _manager(2).allocate(count=3)


def test_releasing_twice_is_a_bug() -> None:
    manager = _manager(2)
    blocks = manager.allocate(count=1)
    manager.release(blocks)

    with pytest.raises(RuntimeError, match="released more often"):
        manager.release(blocks)


def test_sharing_a_free_block_without_content_is_a_bug() -> None:
    with pytest.raises(RuntimeError, match="KV block 1 is shared, but it is free and has no content"):
        _manager(2).share([1])


def test_registering_a_block_nobody_holds_is_a_bug() -> None:
    with pytest.raises(RuntimeError, match="KV block 1 is registered, but nobody holds it"):
        _manager(2).register(1, digest=b"a")


def test_a_leaked_block_is_noticed() -> None:
    manager = _manager(2)
    manager.allocate(count=1)
    manager._holders[0] = 0

    with pytest.raises(RuntimeError, match="do not add up: 1 free, 0 held, 1 counted"):
        manager.check_integrity()


def test_a_torn_index_is_noticed() -> None:
    manager = _manager(2)
    _registered(manager, b"a")
    del manager._block_of[b"a"]

    with pytest.raises(RuntimeError, match="the prefix index of 1 KV blocks is not one to one"):
        manager.check_integrity()
