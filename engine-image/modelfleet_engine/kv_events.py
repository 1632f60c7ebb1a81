"""Which of the gateway's text-block hashes have their KV resident, and how that changes. Pure.

The gateway routes by text: it needs no tokenizer and knows no KV block. Hash k of n of a prompt's text stands for the
prompt's first floor(tokens * k / n) tokens, rounded down to whole KV blocks; it is attached to the block that ends
there and dies with it. A block is in the index only while all before it are, so that block is enough.
"""

from __future__ import annotations

from collections.abc import Sequence

from modelfleet_engine.request import KvEvents

# Texts that differ in the characters of one KV block share it; and text blocks may be smaller than a KV block. More
# names than this for one block only come from clients that invent them: the oldest name is dropped.
MAX_HASHES_PER_BLOCK = 8


def hashes_by_block(hashes: Sequence[str], *, prompt_tokens: int, block_tokens: int) -> dict[int, tuple[str, ...]]:
    """The hashes that end with each KV block of a prompt, by the block's index in the sequence."""
    ending: dict[int, tuple[str, ...]] = {}
    for k, text_hash in enumerate(hashes, start=1):
        blocks = prompt_tokens * k // len(hashes) // block_tokens
        if blocks:
            ending[blocks - 1] = (*ending.get(blocks - 1, ()), text_hash)
    return ending


class ResidentHashes:
    """The hashes attached to KV blocks. A hash may name several blocks: it is resident while one of them is."""

    def __init__(self) -> None:
        self._hashes_of: dict[int, list[str]] = {}
        self._blocks_with: dict[str, int] = {}
        # Hashes touched since the last take, and whether they were resident then.
        self._touched: dict[str, bool] = {}

    def attach(self, block: int, hashes: Sequence[str]) -> None:
        """Says that `hashes` end with this block, whose content is in the index."""
        attached = self._hashes_of.setdefault(block, [])
        for text_hash in hashes:
            if text_hash in attached:
                continue
            if len(attached) == MAX_HASHES_PER_BLOCK:
                self._drop(attached.pop(0))
            attached.append(text_hash)
            self._touched.setdefault(text_hash, text_hash in self._blocks_with)
            self._blocks_with[text_hash] = self._blocks_with.get(text_hash, 0) + 1

    def evict(self, block: int) -> None:
        """The block lost its content."""
        for text_hash in self._hashes_of.pop(block, ()):
            self._drop(text_hash)

    def take(self) -> KvEvents | None:
        """The net change since this was last asked; None if there is none."""
        if not self._touched:
            return None
        touched, self._touched = self._touched, {}
        stored = tuple(name for name, was_resident in touched.items() if not was_resident and name in self._blocks_with)
        evicted = tuple(
            name for name, was_resident in touched.items() if was_resident and name not in self._blocks_with
        )
        return KvEvents(stored=stored, evicted=evicted) if stored or evicted else None

    def _drop(self, text_hash: str) -> None:
        self._touched.setdefault(text_hash, True)
        self._blocks_with[text_hash] -= 1
        if self._blocks_with[text_hash] == 0:
            del self._blocks_with[text_hash]
