"""The cpu backend: bfloat16 through the compiled library; nothing here computes."""

from __future__ import annotations

import torch
from torch import Tensor

from modelfleet_kernels.cpu import layout, library, limits, linear
from modelfleet_kernels.cpu.decoder import CpuDecoder
from modelfleet_kernels.cpu.linear import this_team
from modelfleet_kernels.cpu.prepared import CpuBatch, memory_of, own, prepare
from modelfleet_kernels.types import (
    Activation,
    AttentionForm,
    DecoderStack,
    FusedDecoder,
    Needs,
    PackedLinear,
    PagedBatch,
    PreparedBatch,
    RopeTables,
)


class CpuBackend:
    """See `types.Backend`."""

    name = "cpu"
    attention_copies_context = False  # it reads blocks where they lie, in chunks of a fixed size

    @staticmethod
    def unavailable_reason() -> str | None:
        """Why it does not run on this machine, or None."""
        return library.unavailable_reason()

    def refusal(self, needs: Needs) -> str | None:
        """Why it cannot compute what is needed, or None."""
        return limits.refusal(needs)

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> PackedLinear:
        """weight [O, K], bias [O]."""
        return linear.pack(weight, bias)

    def linear(self, inputs: Tensor, packed: PackedLinear) -> Tensor:
        """[T, K] -> [T, O]."""
        return linear.linear(inputs, packed, torch.bfloat16)

    def linear_float32(self, inputs: Tensor, packed: PackedLinear) -> Tensor:
        """[T, K] -> [T, O] float32."""
        return linear.linear(inputs, packed, torch.float32)

    def weight_rows(self, packed: PackedLinear, indices: Tensor) -> Tensor:
        """[R] -> [R, K]."""
        return linear.rows_of(packed, indices)

    def pack_gated_linear(self, weight: Tensor, bias: Tensor | None) -> PackedLinear:
        """weight [2I, K], bias [2I]."""
        return linear.pack(linear.interleave_gates(weight), None if bias is None else linear.interleave_gates(bias))

    def gated_linear(self, inputs: Tensor, packed: PackedLinear, activation: Activation) -> Tensor:
        """[T, K] -> [T, I]."""
        return linear.gated_linear(inputs, packed, activation)

    def rms_norm(self, inputs: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """[..., K] -> [..., K]."""
        limits.require_bfloat16(inputs)
        rows, factors = inputs.contiguous(), weight.float().contiguous()
        width, result = inputs.shape[-1], torch.empty_like(rows)
        count = rows.numel() // width if width else 0
        arguments = (rows.data_ptr(), count, width, factors.data_ptr(), epsilon, result.data_ptr())
        library.library().modelfleet_rms_norm(this_team(), *arguments)
        return result

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """[T, 2K] -> [T, K]."""
        return _gated(gate_up, "silu")

    def gelu_mul(self, gate_up: Tensor) -> Tensor:
        """[T, 2K] -> [T, K]."""
        return _gated(gate_up, "gelu_tanh")

    def prepare(
        self, batch: PagedBatch, kv_cache: Tensor, query_heads: int, windows: frozenset[int | None]
    ) -> PreparedBatch:
        """Lays the rows out as the library reads them."""
        return prepare(batch, kv_cache, query_heads, windows)

    def rope_write_kv(self, qkv: Tensor, kv_cache: Tensor, prepared: PreparedBatch, rope: RopeTables) -> Tensor:
        """[T, (Hq + 2 Hkv) D] -> rotated query [T, Hq, D]."""
        batch, rows = own(prepared), qkv.contiguous()
        cos, signed_sin = rope.cos.contiguous(), rope.signed_sin.contiguous()
        query = rows.new_empty((batch.tokens, batch.query_heads, batch.head_dim))
        heads = library.HeadsStruct(batch.query_heads, batch.kv_heads, batch.head_dim, None, None, 0.0)
        turns = library.RopeStruct(cos.data_ptr(), signed_sin.data_ptr(), cos.shape[-1])
        cache = _cache(kv_cache, batch)
        arguments = (batch.struct.slots, batch.tokens, rows.data_ptr(), query.data_ptr())
        library.library().modelfleet_rope_write_kv(this_team(), heads, turns, cache, *arguments)
        return query

    def paged_attention(self, query: Tensor, kv_cache: Tensor, prepared: PreparedBatch, form: AttentionForm) -> Tensor:
        """[T, Hq, D] -> [T, Hq * D]."""
        batch, rows = own(prepared), query.contiguous()
        output = rows.new_empty((batch.tokens, batch.query_heads * batch.head_dim))
        shape = library.AttentionFormStruct(form.scale_of(batch.head_dim), form.soft_cap or 0.0, form.window or 0)
        arguments = (rows.data_ptr(), batch.query_heads, output.data_ptr())
        cache = _cache(kv_cache, batch)
        library.library().modelfleet_paged_attention(this_team(), batch.struct, shape, cache, *arguments)
        return output

    def fuse(self, stack: DecoderStack) -> FusedDecoder | None:
        """All layers in one call."""
        return CpuDecoder(stack)

    def cache_from_plain(self, plain: Tensor) -> Tensor:
        """[N, 2, Hkv, P, D] -> [N, 2, Hkv, P, D]."""
        return layout.from_plain(plain)

    def cache_to_plain(self, cache: Tensor) -> Tensor:
        """[N, 2, Hkv, P, D] -> [N, 2, Hkv, P, D]."""
        return layout.to_plain(cache)


def _gated(gate_up: Tensor, activation: Activation) -> Tensor:
    limits.require_bfloat16(gate_up)
    rows, width = gate_up.contiguous(), gate_up.shape[1] // 2
    result = rows.new_empty((rows.shape[0], width))
    arguments = (rows.data_ptr(), rows.shape[0], width, linear.ACTIVATION_CODES[activation], result.data_ptr())
    library.library().modelfleet_gated(this_team(), *arguments)
    return result


def _cache(kv_cache: Tensor, batch: CpuBatch) -> library.CacheStruct:
    return library.CacheStruct(memory_of(kv_cache, batch), batch.kv_heads, batch.block_tokens, batch.head_dim)
