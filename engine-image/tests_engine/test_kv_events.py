"""Which text-block hashes have their KV resident: attached to blocks, dying with them."""

from __future__ import annotations

import pytest
from modelfleet_engine.kv_events import MAX_HASHES_PER_BLOCK, ResidentHashes, hashes_by_block
from modelfleet_engine.request import KvEvents
from modelfleet_engine.scheduler import Scheduler

from tests_engine.scheduling import Driver, limits, request


@pytest.mark.parametrize(
    ("hashes", "prompt_tokens", "ending"),
    [
        # Of 40 tokens in blocks of 16: 13 tokens fill no block, 26 fill one, 40 fill two.
        (("a", "b", "c"), 40, {0: ("b",), 1: ("c",)}),
        (("a", "b", "c", "d"), 32, {0: ("b", "c"), 1: ("d",)}),
        (("a",), 15, {}),
        ((), 100, {}),
    ],
)
def test_hash_k_of_n_ends_with_the_last_whole_block_of_its_share_of_the_tokens(
    hashes: tuple[str, ...], prompt_tokens: int, ending: dict[int, tuple[str, ...]]
) -> None:
    assert hashes_by_block(hashes, prompt_tokens=prompt_tokens, block_tokens=16) == ending


def test_a_hash_is_resident_while_any_of_its_blocks_is() -> None:
    resident = ResidentHashes()
    resident.attach(1, ["a"])
    resident.attach(2, ["a"])
    assert resident.take() == KvEvents(stored=("a",))

    resident.evict(1)
    assert resident.take() is None
    resident.evict(2)
    assert resident.take() == KvEvents(evicted=("a",))


def test_only_the_net_change_is_told() -> None:
    resident = ResidentHashes()
    resident.attach(1, ["came-and-went"])
    resident.evict(1)
    assert resident.take() is None

    resident.attach(1, ["stays"])
    resident.take()
    resident.evict(1)
    resident.attach(2, ["stays"])
    assert resident.take() is None


def test_a_block_has_a_bounded_number_of_names() -> None:
    resident = ResidentHashes()
    names = tuple(f"h{index}" for index in range(MAX_HASHES_PER_BLOCK + 1))
    resident.attach(1, names)

    assert resident.take() == KvEvents(stored=names[1:])
    resident.evict(1)
    assert resident.take() == KvEvents(evicted=names[1:])


def test_a_prompts_hashes_are_told_when_its_blocks_are_planned_and_when_they_are_evicted() -> None:
    driver = Driver(Scheduler(limits(kv_blocks=8, max_model_len=32)), depth=1)
    driver.scheduler.add(request("a", prompt=(1,) * 16, max_tokens=1, prefix_hashes=("a1", "a2")))
    driver.run()
    assert driver.resident == {"a1", "a2"}

    # Needs seven of eight blocks: the tail of the four goes before its head, and the head's end with it.
    driver.scheduler.add(request("b", prompt=(2,) * 27, max_tokens=1, prefix_hashes=("b1",)))
    driver.run()

    assert driver.resident == {"b1"}


def test_hashes_are_learned_for_blocks_that_were_cached_without_them() -> None:
    driver = Driver(Scheduler(limits()), depth=1)
    driver.scheduler.add(request("from-elsewhere", prompt=(1,) * 17, max_tokens=1))
    driver.run()
    driver.scheduler.add(request("from-the-gateway", prompt=(1,) * 17, max_tokens=1, prefix_hashes=("h1", "h2")))
    driver.run()

    assert driver.cached_tokens()["from-the-gateway"] == 16
    assert driver.resident == {"h1", "h2"}
