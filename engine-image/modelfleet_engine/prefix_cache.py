"""The digests that name the content of KV blocks: a chain, so that equal digests mean equal tokens from the start.

Pure. A block's digest covers the block before it and its own token ids; the first one hangs on the salt, so that two
tenants never share a block, nor learn from the time to the first token what the other one asked.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b

# 128 bits: among 2**40 blocks two contents share a digest with a probability below 2**-48.
DIGEST_BYTES = 16


def root_digest(salt: str) -> bytes:
    """What a chain under this salt begins with."""
    return blake2b(salt.encode(), digest_size=DIGEST_BYTES, person=b"modelfleet-salt").digest()


def block_digest(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The digest of a block with these token ids (each below 2**32) after the block named `parent`."""
    return blake2b(parent + struct.pack(f"<{len(token_ids)}I", *token_ids), digest_size=DIGEST_BYTES).digest()
