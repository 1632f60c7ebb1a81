"""Work over the vocabulary in bounded pieces: no tensor of all rows by all tokens ever exists.

At 256 sequences and 262,144 tokens one float32 [R, V] is 268 MB, and sampling holds several at once.
"""

from __future__ import annotations

from collections.abc import Iterator

# Elements of one piece of logits: 16 MiB in float32, and 85 rows of 49,152 tokens, enough to use the matrix units.
SLICE_ELEMENTS = 4 << 20
# Pieces alive at once, counted in float32: the product before it is widened, logits, a copy for log probabilities,
# scaled logits, those of the rows drawn without restriction, weights, and noise in three steps.
SLICES_AT_ONCE = 9


def row_slices(rows: int, *, vocab_size: int) -> Iterator[slice]:
    """Cuts `rows` rows of logits into pieces of at most `SLICE_ELEMENTS` elements, at least one row each."""
    step = rows_per_slice(vocab_size)
    for first in range(0, rows, step):
        yield slice(first, min(rows, first + step))


def rows_per_slice(vocab_size: int) -> int:
    """How many rows of logits one piece holds."""
    return max(1, SLICE_ELEMENTS // vocab_size)


def workspace_bytes(rows: int, *, vocab_size: int) -> int:
    """An upper bound of what computing and sampling `rows` rows of logits holds at once."""
    return SLICES_AT_ONCE * 4 * min(rows, rows_per_slice(vocab_size)) * vocab_size
