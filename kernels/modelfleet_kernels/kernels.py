"""The public ops: each checks its contract, then calls the selected backend. No arithmetic of its own."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from modelfleet_kernels import checks, checks_of_stack
from modelfleet_kernels.checks_of_stack import CheckedDecoder
from modelfleet_kernels.types import (
    PLAIN_ATTENTION,
    Activation,
    AttentionForm,
    Backend,
    DecoderStack,
    FusedDecoder,
    Needs,
    PackedLinear,
    PagedBatch,
    PreparedBatch,
    RopeTables,
)


class Kernels:
    """The ops of one backend. Shapes as in `types`; broken contracts raise `checks.ContractError`.

    With `out` an op writes every element of it and returns it: what a captured graph needs.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @property
    def backend_name(self) -> str:
        """The backend's name, for logs and reports."""
        return self._backend.name

    @property
    def attention_copies_context(self) -> bool:
        """Whether attention takes memory that grows with the context: what a plan of the memory must know."""
        return self._backend.attention_copies_context

    def refusal(self, needs: Needs) -> str | None:
        """Why the backend cannot compute what is needed, or None."""
        return self._backend.refusal(needs)

    def pack_linear(self, weight: Tensor, bias: Tensor | None = None) -> PackedLinear:
        """Takes weight [O, K] and bias [O] into the backend's own form; keeps no view of `weight`'s memory."""
        checks.check_weight(weight, bias)
        return self._backend.pack_linear(weight, bias)

    def linear(self, inputs: Tensor, packed: PackedLinear, *, out: Tensor | None = None) -> Tensor:
        """inputs [T, K] -> inputs @ weight.T + bias, [T, O]."""
        checks.check_linear(inputs, packed)
        return _deliver(self._backend.linear(inputs, packed), out)

    def linear_float32(self, inputs: Tensor, packed: PackedLinear, *, out: Tensor | None = None) -> Tensor:
        """As `linear`, in float32: not rounded to the activations' dtype where the backend can leave that out."""
        checks.check_linear(inputs, packed)
        return _deliver(self._backend.linear_float32(inputs, packed), out)

    def weight_rows(self, packed: PackedLinear, indices: Tensor) -> Tensor | None:
        """Rows `indices` [R] int64 of a packed weight, [R, K]; None where the backend cannot read them back.

        What a tied embedding needs to exist once.
        """
        checks.check_indices("rows of a weight", indices)
        return self._backend.weight_rows(packed, indices)

    def pack_gated_linear(self, weight: Tensor, bias: Tensor | None = None) -> PackedLinear:
        """Takes weight [2I, K] = (gates, ups) and bias [2I] for `gated_linear`."""
        checks.check_weight(weight, bias)
        return self._backend.pack_gated_linear(weight, bias)

    def gated_linear(
        self, inputs: Tensor, packed: PackedLinear, activation: Activation, *, out: Tensor | None = None
    ) -> Tensor:
        """inputs [T, K] -> activation(inputs @ gates.T + b) * (inputs @ ups.T + b'), [T, I]."""
        checks.check_linear(inputs, packed)
        return _deliver(self._backend.gated_linear(inputs, packed, activation), out)

    def rms_norm(self, inputs: Tensor, weight: Tensor, *, epsilon: float, out: Tensor | None = None) -> Tensor:
        """inputs [..., K] / sqrt(mean of squares + epsilon) * weight [K]. Zhang & Sennrich 2019.

        Computed in float32 and rounded once to the inputs' dtype. The weight has that dtype or is float32 (Gemma's
        1 + weight would lose most of its digits in bfloat16). `out` may be `inputs` itself.
        """
        checks.check_norm(inputs, weight)
        return _deliver(self._backend.rms_norm(inputs, weight, epsilon), out)

    def add_rms_norm(
        self, inputs: Tensor, residual: Tensor, weight: Tensor, *, epsilon: float, out: Tensor | None = None
    ) -> Tensor:
        """Adds inputs [T, K] to `residual` in place, then answers the norm of the sum, [T, K]."""
        checks.check_residual(inputs, residual)
        checks.check_norm(residual, weight)
        residual.add_(inputs)
        return _deliver(self._backend.rms_norm(residual, weight, epsilon), out)

    def silu_mul(self, gate_up: Tensor, *, out: Tensor | None = None) -> Tensor:
        """gate_up [T, 2K] = (gate, up) -> silu(gate) * up, [T, K]. May overwrite `gate_up`."""
        checks.check_gate_up(gate_up)
        return _deliver(self._backend.silu_mul(gate_up), out)

    def gelu_mul(self, gate_up: Tensor, *, out: Tensor | None = None) -> Tensor:
        """gate_up [T, 2K] = (gate, up) -> gelu(gate) * up, [T, K], by the tanh formula. May overwrite `gate_up`.

        Hendrycks & Gimpel 2016: gelu(x) = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))).
        """
        checks.check_gate_up(gate_up)
        return _deliver(self._backend.gelu_mul(gate_up), out)

    def prepare(
        self, batch: PagedBatch, kv_cache: Tensor, *, query_heads: int, windows: Iterable[int | None] = (None,)
    ) -> PreparedBatch:
        """Derives once per step what all layers share, masks included. `kv_cache` is any one layer's.

        `windows` holds every window that `paged_attention` is then called with.
        """
        every_window = frozenset(windows)
        checks.check_batch(batch, kv_cache, query_heads)
        checks.check_windows(every_window)
        return self._backend.prepare(batch, kv_cache, query_heads, every_window)

    def rope_write_kv(
        self, qkv: Tensor, kv_cache: Tensor, prepared: PreparedBatch, rope: RopeTables, *, out: Tensor | None = None
    ) -> Tensor:
        """qkv [T, (Hq + 2 Hkv) D]: rotates queries and keys, writes keys and values at `slot_mapping`.

        Rotation in halves (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), as Hugging Face stores Llama's weights, of
        the first numbers of each head that `rope` covers.
        Answers the rotated queries [T, Hq, D]. May overwrite `qkv`.
        """
        checks.check_cache(kv_cache, prepared)
        checks.check_qkv(qkv, kv_cache, prepared)
        checks.check_rope(rope, kv_cache, prepared)
        return _deliver(self._backend.rope_write_kv(qkv, kv_cache, prepared, rope), out)

    def paged_attention(
        self,
        query: Tensor,
        kv_cache: Tensor,
        prepared: PreparedBatch,
        form: AttentionForm = PLAIN_ATTENTION,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """Causal grouped-query attention of query [T, Hq, D] over each row's own blocks -> [T, Hq * D].

        A row's token i is at position p = sequence length - query length + i and sees positions (p - window, p].
        """
        checks.check_cache(kv_cache, prepared)
        checks.check_query(query, kv_cache, prepared)
        checks.check_form(form, prepared)
        return _deliver(self._backend.paged_attention(query, kv_cache, prepared, form), out)

    def fuse(self, stack: DecoderStack) -> FusedDecoder | None:
        """All layers as one call, where the backend has that; its callers prepare batches as for single ops."""
        checks_of_stack.check_stack(stack)
        decoder = self._backend.fuse(stack)
        return None if decoder is None else CheckedDecoder(decoder, stack)

    def cache_from_plain(self, plain: Tensor) -> Tensor:
        """One layer's cache [N, 2, Hkv, P, D], numbers in the order of these axes -> in the backend's own order."""
        return self._backend.cache_from_plain(plain)

    def cache_to_plain(self, cache: Tensor) -> Tensor:
        """The inverse of `cache_from_plain`."""
        return self._backend.cache_to_plain(cache)


def _deliver(result: Tensor, out: Tensor | None) -> Tensor:
    if out is None:
        return result
    checks.check_output(out, result)
    return out.copy_(result)
