"""What the ops take: the batch of one step over a paged KV cache, and packed weights. No computation here.

Letters used in every shape comment: T tokens of the step, S sequences (rows) of the step, Hq query heads, Hkv KV heads,
D head size, N cache blocks, P tokens per block, M blocks per table row, K input and O output features.

One layer's KV cache is [N, 2, Hkv, P, D]: keys at 0, values at 1 of the second axis. A block's tokens of one head are
contiguous, so that one gather reads keys and values of all heads. Its memory must hold finite numbers everywhere
(it starts as zeros): a backend may read past a sequence's end and weigh what it finds there with zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PagedBatch:
    """One step's rows, in the order of their tokens: T = sum of query lengths.

    Row s computes `query_lengths[s]` >= 1 tokens, the last of the `sequence_lengths[s]` that its KV then holds. The
    lengths are host integers, so that no backend has to wait for the device to learn a shape.
    """

    query_lengths: Sequence[int]  # S
    sequence_lengths: Sequence[int]  # S, this step's tokens included
    block_tables: Tensor  # [S, M] int64, padded with any valid block id
    slot_mapping: Tensor  # [T] int64: block id * P + offset in the block


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RopeTables:
    """What one step's queries and keys are rotated by: x cos + swap(x) signed_sin, where swap exchanges the halves.

    Rotates the first R <= D numbers of each head and leaves the rest (partial rotary). Both halves of `cos` are equal;
    the first half of `signed_sin` is the negative of its second. An attention factor is multiplied into both.
    """

    cos: Tensor  # [T, 1, R] of the activations' dtype; broadcasts over the heads
    signed_sin: Tensor  # [T, 1, R]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionForm:
    """How a layer attends, beyond causal attention scaled by 1 / sqrt(D).

    Scores are multiplied by `scale`, then become soft_cap * tanh(score / soft_cap) (Gemma 2), then a token sees the
    last `window` positions, itself included (Mistral).

    `large_offset`: biases of queries and keys may move all scores of a token far from zero (Qwen2). No result depends
    on it, but digits do: a backend that rounds scores to the activations' dtype takes them relative to one of them.
    """

    scale: float | None = None  # None: 1 / sqrt(D)
    window: int | None = None  # tokens >= 1; None: everything before it
    soft_cap: float | None = None
    large_offset: bool = False


PLAIN_ATTENTION = AttentionForm()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreparedBatch:
    """A batch and what a backend derived from it once for all layers. Only its own backend reads the rest."""

    batch: PagedBatch
    tokens: int  # T
    query_heads: int
    kv_heads: int
    head_dim: int
    block_tokens: int
    windows: frozenset[int | None]  # those its layers may attend with


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedLinear:
    """A weight in the form its backend multiplies fastest. `weight` may be opaque: only `linear` may read it."""

    weight: Tensor
    bias: Tensor | None  # [O]
    in_features: int  # K
    out_features: int  # O
    dtype: torch.dtype


class Backend(Protocol):
    """What a backend implements. `Kernels` has checked all shapes before any of these is called."""

    @property
    def name(self) -> str:
        """The name users request it by."""

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> PackedLinear:
        """weight [O, K], bias [O]."""

    def linear(self, inputs: Tensor, packed: PackedLinear) -> Tensor:
        """[T, K] -> [T, O]."""

    def rms_norm(self, inputs: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """[..., K] -> [..., K]; the weight may be float32 where the inputs are not."""

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """[T, 2K] -> [T, K]."""

    def gelu_mul(self, gate_up: Tensor) -> Tensor:
        """[T, 2K] -> [T, K]."""

    def prepare(
        self, batch: PagedBatch, kv_cache: Tensor, query_heads: int, windows: frozenset[int | None]
    ) -> PreparedBatch:
        """Derives what all layers share; `kv_cache` is any one layer's."""

    def rope_write_kv(self, qkv: Tensor, kv_cache: Tensor, prepared: PreparedBatch, rope: RopeTables) -> Tensor:
        """[T, (Hq + 2 Hkv) D] -> rotated query [T, Hq, D]; writes keys and values."""

    def paged_attention(self, query: Tensor, kv_cache: Tensor, prepared: PreparedBatch, form: AttentionForm) -> Tensor:
        """[T, Hq, D] -> [T, Hq * D]."""
