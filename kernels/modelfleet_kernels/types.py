"""What the ops take: the batch of one step over a paged KV cache, and packed weights. No computation here.

Letters used in every shape comment: T tokens of the step, S sequences (rows) of the step, Hq query heads, Hkv KV heads,
D head size, N cache blocks, P tokens per block, M blocks per table row, K input and O output features.

One layer's KV cache is [N, 2, Hkv, P, D]: keys at 0, values at 1 of the second axis. A block's tokens of one head are
contiguous, so that one gather reads keys and values of all heads. Where the P * D numbers of a head's keys or values in
a block lie is the backend's own choice: only its ops, `cache_from_plain` and copies of whole blocks may touch them.
The memory must hold finite numbers everywhere (it starts as zeros): a backend may read past a sequence's end and weigh
what it finds there with zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a model asks of a backend, for the choice of one."""

    dtype: torch.dtype
    head_dim: int
    block_tokens: int
    widths: tuple[int, ...] = ()  # input features of its linear layers
    gated_width: int = 0  # I of its gated linear layers; 0: it has none


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

    def scale_of(self, head_dim: int) -> float:
        """What scores of heads of `head_dim` numbers are multiplied by."""
        return head_dim**-0.5 if self.scale is None else self.scale


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecoderLayer:
    """Packed weights of one decoder layer. H hidden size, I intermediate size."""

    attention: AttentionForm
    rope: int  # which of the step's `RopeTables`
    input_norm: Tensor  # [H]
    qkv: PackedLinear  # H -> (Hq + 2 Hkv) D
    query_norm: Tensor | None  # [D], over each head
    key_norm: Tensor | None  # [D]
    output: PackedLinear  # Hq D -> H
    output_norm: Tensor | None  # [H], before attention's output is added
    mlp_norm: Tensor  # [H]
    gate_up: PackedLinear  # H -> I, by `gated_linear`
    down: PackedLinear  # I -> H
    mlp_output_norm: Tensor | None  # [H], before the MLP's output is added


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecoderStack:
    """All layers and the final norm; scale and soft cap of attention are the same in every layer."""

    layers: Sequence[DecoderLayer]
    final_norm: Tensor  # [H]
    activation: Activation
    epsilon: float
    query_heads: int
    kv_heads: int
    head_dim: int


class FusedDecoder(Protocol):
    """A `DecoderStack` as one call, which writes the step's keys and values too."""

    def __call__(
        self,
        embedded: Tensor,
        kv_layers: Sequence[Tensor],
        prepared: PreparedBatch,
        ropes: Sequence[RopeTables],
        output_tokens: Tensor,
    ) -> Tensor:
        """embedded [T, H], one cache per layer, output_tokens [R] int64 -> normed hidden states [R, H]."""


class Backend(Protocol):
    """What a backend implements. `Kernels` has checked all shapes before any of these is called."""

    @property
    def name(self) -> str:
        """The name users request it by."""

    @property
    def attention_copies_context(self) -> bool:
        """Whether attention takes memory that grows with the context: masks, gathered blocks."""

    @staticmethod
    def unavailable_reason() -> str | None:
        """Why it does not run on this machine, or None."""

    def refusal(self, needs: Needs) -> str | None:
        """Why it cannot compute what is needed, or None."""

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> PackedLinear:
        """weight [O, K], bias [O]."""

    def linear(self, inputs: Tensor, packed: PackedLinear) -> Tensor:
        """[T, K] -> [T, O]."""

    def linear_float32(self, inputs: Tensor, packed: PackedLinear) -> Tensor:
        """[T, K] -> [T, O] float32."""

    def weight_rows(self, packed: PackedLinear, indices: Tensor) -> Tensor | None:
        """[R] int64 -> those rows of the weight, [R, K]; None where a packed weight cannot be read."""

    def pack_gated_linear(self, weight: Tensor, bias: Tensor | None) -> PackedLinear:
        """weight [2I, K] = (gates, ups), bias [2I]."""

    def gated_linear(self, inputs: Tensor, packed: PackedLinear, activation: Activation) -> Tensor:
        """[T, K] -> [T, I]."""

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

    def fuse(self, stack: DecoderStack) -> FusedDecoder | None:
        """The whole stack as one call; None: it is called op by op."""

    def cache_from_plain(self, plain: Tensor) -> Tensor:
        """One layer's cache [N, 2, Hkv, P, D] in the order of its axes -> as this backend reads it."""

    def cache_to_plain(self, cache: Tensor) -> Tensor:
        """The inverse of `cache_from_plain`."""
