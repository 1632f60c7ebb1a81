"""What backends of single torch ops share: larger ops made of smaller ones, and nothing fused."""

from __future__ import annotations

from torch import Tensor

from modelfleet_kernels.types import Activation, Backend, DecoderStack, FusedDecoder, Needs, PackedLinear


class ComposedOps:
    """The rest of `types.Backend` for a backend that has the small ops."""

    attention_copies_context = True

    @staticmethod
    def unavailable_reason() -> str | None:
        """Runs wherever torch does."""
        return None

    def refusal(self, needs: Needs) -> str | None:
        """Computes everything."""
        del needs
        return None

    def linear_float32(self: Backend, inputs: Tensor, packed: PackedLinear) -> Tensor:
        """[T, K] -> [T, O]; rounded to the activations' dtype on the way."""
        return self.linear(inputs, packed).float()

    def weight_rows(self, packed: PackedLinear, indices: Tensor) -> Tensor | None:
        """A packed weight may be opaque."""
        del packed, indices
        return None

    def pack_gated_linear(self: Backend, weight: Tensor, bias: Tensor | None) -> PackedLinear:
        """weight [2I, K], bias [2I]."""
        return self.pack_linear(weight, bias)

    def gated_linear(self: Backend, inputs: Tensor, packed: PackedLinear, activation: Activation) -> Tensor:
        """[T, K] -> [T, I]."""
        gate_up = self.linear(inputs, packed)  # [T, 2I]
        return self.silu_mul(gate_up) if activation == "silu" else self.gelu_mul(gate_up)

    def fuse(self, stack: DecoderStack) -> FusedDecoder | None:
        """Not fused."""
        del stack
        return None

    def cache_from_plain(self, plain: Tensor) -> Tensor:
        """The plain order is its own."""
        return plain.clone()

    def cache_to_plain(self, cache: Tensor) -> Tensor:
        """The plain order is its own."""
        return cache.clone()
