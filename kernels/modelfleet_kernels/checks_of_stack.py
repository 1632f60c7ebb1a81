"""The contract of a fused decoder: of its weights once, of each step's tensors. Reads shapes only, never values."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from modelfleet_kernels import checks
from modelfleet_kernels.checks import ContractError
from modelfleet_kernels.types import DecoderLayer, DecoderStack, FusedDecoder, PackedLinear, PreparedBatch, RopeTables


def check_stack(stack: DecoderStack) -> None:
    """At least one layer; all of the same sizes, attention's scale and soft cap."""
    if not stack.layers:
        raise ContractError("a decoder has at least one layer")
    forms = {(layer.attention.scale, layer.attention.soft_cap) for layer in stack.layers}
    if len(forms) > 1:
        raise ContractError(f"attention's scale and soft cap are those of every layer, got {forms}")
    for index, layer in enumerate(stack.layers):
        _check_products(stack, layer, index=index)
        _check_norms(stack, layer, index=index)


def _check_products(stack: DecoderStack, layer: DecoderLayer, *, index: int) -> None:
    hidden, inner = stack.final_norm.shape[0], stack.layers[0].down.in_features
    query_width, kv_width = stack.query_heads * stack.head_dim, stack.kv_heads * stack.head_dim
    products: dict[str, tuple[PackedLinear, int, int]] = {
        "qkv": (layer.qkv, hidden, query_width + 2 * kv_width),
        "output": (layer.output, query_width, hidden),
        "gate_up": (layer.gate_up, hidden, 2 * inner),
        "down": (layer.down, inner, hidden),
    }
    for name, (packed, inputs, outputs) in products.items():
        if (packed.in_features, packed.out_features) != (inputs, outputs):
            given = f"{packed.in_features} -> {packed.out_features}"
            raise ContractError(f"layer {index}: {name} must be {inputs} -> {outputs}, got {given}")


def _check_norms(stack: DecoderStack, layer: DecoderLayer, *, index: int) -> None:
    hidden, head_dim = stack.final_norm.shape[0], stack.head_dim
    rows = (layer.input_norm, layer.output_norm, layer.mlp_norm, layer.mlp_output_norm)
    for width, norms in ((hidden, rows), (head_dim, (layer.query_norm, layer.key_norm))):
        for norm in norms:
            if norm is not None and norm.shape != (width,):
                raise ContractError(f"layer {index}: a norm must be [{width}], got {list(norm.shape)}")


class CheckedDecoder:
    """See `types.FusedDecoder`: calls a backend's, after its contract was checked."""

    def __init__(self, decoder: FusedDecoder, stack: DecoderStack) -> None:
        self._decoder = decoder
        self._stack = stack
        self._windows = frozenset(layer.attention.window for layer in stack.layers)
        self._ropes = 1 + max(layer.rope for layer in stack.layers)

    def __call__(
        self,
        embedded: Tensor,
        kv_layers: Sequence[Tensor],
        prepared: PreparedBatch,
        ropes: Sequence[RopeTables],
        output_tokens: Tensor,
    ) -> Tensor:
        """embedded [T, H] -> [R, H]."""
        self._check_geometry(embedded, prepared)
        checks.check_indices("output tokens", output_tokens)
        if len(kv_layers) != len(self._stack.layers) or len(ropes) < self._ropes:
            wanted = f"{len(self._stack.layers)} layers' caches and {self._ropes} rope tables"
            raise ContractError(f"the decoder takes {wanted}, got {len(kv_layers)} and {len(ropes)}")
        for kv_cache in kv_layers:
            checks.check_cache(kv_cache, prepared)
        for rope in ropes:
            checks.check_rope(rope, kv_layers[0], prepared)
        return self._decoder(embedded, kv_layers, prepared, ropes, output_tokens)

    def _check_geometry(self, embedded: Tensor, prepared: PreparedBatch) -> None:
        stack = self._stack
        shape, dtype = (prepared.tokens, stack.final_norm.shape[0]), stack.layers[0].qkv.dtype
        if embedded.shape != shape or embedded.dtype != dtype:
            given = f"{list(embedded.shape)} {embedded.dtype}"
            raise ContractError(f"embedded tokens must be {list(shape)} {dtype}, got {given}")
        heads = (stack.query_heads, stack.kv_heads, stack.head_dim)
        if (prepared.query_heads, prepared.kv_heads, prepared.head_dim) != heads:
            raise ContractError(f"the batch was not prepared for {heads} query heads, KV heads and numbers a head")
        if not self._windows <= prepared.windows:
            raise ContractError(f"the batch was prepared for windows {set(prepared.windows)}, not {set(self._windows)}")
