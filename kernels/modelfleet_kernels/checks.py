"""The shape contract of the public ops, checked once for all backends. Reads shapes only, never values."""

from __future__ import annotations

import torch
from torch import Tensor

from modelfleet_kernels.types import AttentionForm, PackedLinear, PagedBatch, PreparedBatch, RopeTables


class ContractError(ValueError):
    """A caller broke an op's contract: a bug, not a user's error."""


def _require(condition: object, message: str) -> None:
    if not condition:
        raise ContractError(message)


def _show(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def check_weight(weight: Tensor, bias: Tensor | None) -> None:
    """weight [O, K] floating, bias [O] of the same dtype or None."""
    _require(weight.dim() == 2 and weight.is_floating_point(), f"weight must be [O, K] floating, got {_show(weight)}")
    if bias is not None:
        fits = bias.shape == weight.shape[:1] and bias.dtype == weight.dtype
        _require(fits, f"bias must be [{weight.shape[0]}] of the weight's dtype, got {_show(bias)}")


def check_linear(inputs: Tensor, packed: PackedLinear) -> None:
    """inputs [T, K] of the weight's dtype."""
    fits = inputs.dim() == 2 and inputs.shape[1] == packed.in_features and inputs.dtype == packed.dtype
    _require(fits, f"linear takes [T, {packed.in_features}] {packed.dtype}, got {_show(inputs)}")


def check_norm(inputs: Tensor, weight: Tensor) -> None:
    """inputs [..., K], weight [K] of the same dtype or float32."""
    fits = inputs.dim() >= 2 and weight.shape == inputs.shape[-1:] and weight.dtype in (inputs.dtype, torch.float32)
    _require(fits, f"rms_norm takes [..., K] and [K] of that dtype or float32, got {_show(inputs)}, {_show(weight)}")


def check_residual(inputs: Tensor, residual: Tensor) -> None:
    """inputs and residual of one shape and dtype."""
    fits = inputs.shape == residual.shape and inputs.dtype == residual.dtype
    _require(fits, f"the residual must match the inputs {_show(inputs)}, got {_show(residual)}")


def check_gate_up(gate_up: Tensor) -> None:
    """gate_up [T, 2K]."""
    fits = gate_up.dim() == 2 and gate_up.shape[1] % 2 == 0
    _require(fits, f"a gated activation takes [T, 2K], got {_show(gate_up)}")


def check_output(out: Tensor, result: Tensor) -> None:
    """out of the result's shape and dtype."""
    fits = out.shape == result.shape and out.dtype == result.dtype
    _require(fits, f"out must be {_show(result)}, got {_show(out)}")


def check_batch(batch: PagedBatch, kv_cache: Tensor, query_heads: int) -> None:
    """Rows, tables and slots agree with each other and with the cache."""
    _require(kv_cache.dim() == 5 and kv_cache.shape[1] == 2, f"a KV cache is [N, 2, Hkv, P, D], got {_show(kv_cache)}")
    kv_heads, block_tokens = kv_cache.shape[2:4]
    _require(query_heads % kv_heads == 0, f"{query_heads} query heads are no multiple of {kv_heads} KV heads")
    rows = len(batch.query_lengths)
    _require(rows > 0 and len(batch.sequence_lengths) == rows, "one query and one sequence length per row, >= 1 row")
    _require(min(batch.query_lengths) >= 1, "every row computes at least one token")
    pairs = zip(batch.query_lengths, batch.sequence_lengths, strict=True)
    _require(all(query <= total for query, total in pairs), "a row's KV holds at least the tokens it computes")
    tables = batch.block_tables
    _require(tables.dim() == 2 and tables.shape[0] == rows, f"block tables must be [{rows}, M], got {_show(tables)}")
    longest = max(batch.sequence_lengths)
    fits = tables.shape[1] * block_tokens >= longest
    _require(fits, f"{tables.shape[1]} blocks of {block_tokens} tokens do not cover {longest} tokens")
    tokens = sum(batch.query_lengths)
    _require(
        batch.slot_mapping.shape == (tokens,), f"one slot for each of {tokens} tokens, got {_show(batch.slot_mapping)}"
    )
    for table in (tables, batch.slot_mapping):
        _require(table.dtype == torch.int64, f"block tables and slots are int64, got {table.dtype}")


def check_windows(windows: frozenset[int | None]) -> None:
    """At least one; each at least one token."""
    fits = bool(windows) and all(window is None or window >= 1 for window in windows)
    _require(fits, f"windows are None or at least one token, and one at least; got {set(windows)}")


def check_form(form: AttentionForm, prepared: PreparedBatch) -> None:
    """The batch was prepared for the form's window."""
    known = form.window in prepared.windows
    _require(known, f"the batch was prepared for windows {set(prepared.windows)}, not for {form.window}")


def check_rope(rope: RopeTables, kv_cache: Tensor, prepared: PreparedBatch) -> None:
    """cos and signed_sin [T, 1, R] of the cache's dtype, R even and at most D."""
    width = rope.cos.shape[-1]
    _require(width % 2 == 0 and 0 < width <= prepared.head_dim, f"{width} of {prepared.head_dim} cannot be rotated")
    for table in (rope.cos, rope.signed_sin):
        fits = table.shape == (prepared.tokens, 1, width) and table.dtype == kv_cache.dtype
        _require(fits, f"rope tables must be [{prepared.tokens}, 1, {width}] {kv_cache.dtype}, got {_show(table)}")


def check_cache(kv_cache: Tensor, prepared: PreparedBatch) -> None:
    """The layer's cache has the geometry the batch was prepared for, and is contiguous."""
    geometry = (2, prepared.kv_heads, prepared.block_tokens, prepared.head_dim)
    _require(kv_cache.shape[1:] == geometry, f"the cache must be [N, {geometry}], got {_show(kv_cache)}")
    _require(kv_cache.is_contiguous(), "a layer's cache is contiguous")


def check_qkv(qkv: Tensor, kv_cache: Tensor, prepared: PreparedBatch) -> None:
    """qkv [T, (Hq + 2 Hkv) D] of the cache's dtype."""
    width = (prepared.query_heads + 2 * prepared.kv_heads) * prepared.head_dim
    fits = qkv.shape == (prepared.tokens, width) and qkv.dtype == kv_cache.dtype
    _require(fits, f"qkv must be [{prepared.tokens}, {width}] {kv_cache.dtype}, got {_show(qkv)}")


def check_query(query: Tensor, kv_cache: Tensor, prepared: PreparedBatch) -> None:
    """query [T, Hq, D] of the cache's dtype."""
    shape = (prepared.tokens, prepared.query_heads, prepared.head_dim)
    fits = query.shape == shape and query.dtype == kv_cache.dtype
    _require(fits, f"query must be {list(shape)} {kv_cache.dtype}, got {_show(query)}")
