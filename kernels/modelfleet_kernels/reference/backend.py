"""The reference backend: plain torch on any device. It defines what every other backend must compute."""

from __future__ import annotations

from torch import Tensor

from modelfleet_kernels.composed import ComposedOps
from modelfleet_kernels.reference import gelu_mul, linear, paged_attention, rms_norm, rope_write_kv, silu_mul
from modelfleet_kernels.types import AttentionForm, PackedLinear, PagedBatch, PreparedBatch, RopeTables


class ReferenceBackend(ComposedOps):
    """See `types.Backend`; one file per op."""

    name = "reference"

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> PackedLinear:
        """weight [O, K], bias [O]."""
        return linear.pack_linear(weight, bias)

    def linear(self, inputs: Tensor, packed: PackedLinear) -> Tensor:
        """[T, K] -> [T, O]."""
        return linear.linear(inputs, packed)

    def rms_norm(self, inputs: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """[..., K] -> [..., K]."""
        return rms_norm.rms_norm(inputs, weight, epsilon)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """[T, 2K] -> [T, K]."""
        return silu_mul.silu_mul(gate_up)

    def gelu_mul(self, gate_up: Tensor) -> Tensor:
        """[T, 2K] -> [T, K]."""
        return gelu_mul.gelu_mul(gate_up)

    def prepare(
        self, batch: PagedBatch, kv_cache: Tensor, query_heads: int, windows: frozenset[int | None]
    ) -> PreparedBatch:
        """Nothing to derive."""
        kv_heads, block_tokens, head_dim = kv_cache.shape[2:]
        return PreparedBatch(
            batch=batch,
            tokens=batch.slot_mapping.shape[0],
            query_heads=query_heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            block_tokens=block_tokens,
            windows=windows,
        )

    def rope_write_kv(self, qkv: Tensor, kv_cache: Tensor, prepared: PreparedBatch, rope: RopeTables) -> Tensor:
        """[T, (Hq + 2 Hkv) D] -> rotated query [T, Hq, D]."""
        return rope_write_kv.rope_write_kv(qkv, kv_cache, prepared, rope)

    def paged_attention(self, query: Tensor, kv_cache: Tensor, prepared: PreparedBatch, form: AttentionForm) -> Tensor:
        """[T, Hq, D] -> [T, Hq * D]."""
        return paged_attention.paged_attention(query, kv_cache, prepared, form)
