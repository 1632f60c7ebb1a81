"""The torch_cpu backend: the same results as `reference` within rounding, with packed weights and grouped rows."""

from __future__ import annotations

from torch import Tensor, nn

from modelfleet_kernels.composed import ComposedOps
from modelfleet_kernels.torch_cpu import attention, gather, linear, rms_norm
from modelfleet_kernels.types import AttentionForm, PackedLinear, PagedBatch, PreparedBatch, RopeTables


class TorchCpuBackend(ComposedOps):
    """See `types.Backend`."""

    name = "torch_cpu"

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
        gate, up = gate_up.chunk(2, dim=-1)  # [T, K] each
        return nn.functional.silu(gate).mul_(up)

    def gelu_mul(self, gate_up: Tensor) -> Tensor:
        """[T, 2K] -> [T, K]."""
        gate, up = gate_up.chunk(2, dim=-1)  # [T, K] each
        return nn.functional.gelu(gate, approximate="tanh").mul_(up)

    def prepare(
        self, batch: PagedBatch, kv_cache: Tensor, query_heads: int, windows: frozenset[int | None]
    ) -> PreparedBatch:
        """Groups rows and computes gather and write indices."""
        return gather.prepare(batch, kv_cache, query_heads, windows)

    def rope_write_kv(self, qkv: Tensor, kv_cache: Tensor, prepared: PreparedBatch, rope: RopeTables) -> Tensor:
        """[T, (Hq + 2 Hkv) D] -> rotated query [T, Hq, D]."""
        return attention.rope_write_kv(qkv, kv_cache, _own(prepared), rope)

    def paged_attention(self, query: Tensor, kv_cache: Tensor, prepared: PreparedBatch, form: AttentionForm) -> Tensor:
        """[T, Hq, D] -> [T, Hq * D]."""
        return attention.paged_attention(query, kv_cache, _own(prepared), form)


def _own(prepared: PreparedBatch) -> gather.GatherBatch:
    if not isinstance(prepared, gather.GatherBatch):
        raise TypeError(f"the batch was prepared by another backend: {type(prepared).__name__}")
    return prepared
