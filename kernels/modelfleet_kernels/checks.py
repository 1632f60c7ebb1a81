"""The shape contract of the public ops, checked once for all backends. Reads shapes only, never values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from modelfleet_kernels.types import AttentionForm, PackedLinear, PagedBatch, PreparedBatch, RopeTables


class ContractError(ValueError):
    """A caller broke an op's contract: a bug, not a user's error."""


def _show(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def check_indices(name: str, indices: Tensor) -> None:
    """[R] int64."""
    if indices.dim() != 1 or indices.dtype != torch.int64:
        raise ContractError(f"{name} must be [R] int64, got {_show(indices)}")


def check_weight(weight: Tensor, bias: Tensor | None) -> None:
    """weight [O, K] floating, bias [O] of the same dtype or None."""
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ContractError(f"weight must be [O, K] floating, got {_show(weight)}")
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype):
        raise ContractError(f"bias must be [{weight.shape[0]}] of the weight's dtype, got {_show(bias)}")


def check_linear(inputs: Tensor, packed: PackedLinear) -> None:
    """inputs [T, K] of the weight's dtype."""
    fits = inputs.dim() == 2 and inputs.shape[1] == packed.in_features and inputs.dtype == packed.dtype
    if not fits:
        raise ContractError(f"linear takes [T, {packed.in_features}] {packed.dtype}, got {_show(inputs)}")


def check_norm(inputs: Tensor, weight: Tensor) -> None:
    """inputs [..., K], weight [K] of the same dtype or float32."""
    fits = inputs.dim() >= 2 and weight.shape == inputs.shape[-1:] and weight.dtype in (inputs.dtype, torch.float32)
    if not fits:
        raise ContractError(
            f"rms_norm takes [..., K] and [K] of that dtype or float32, got {_show(inputs)}, {_show(weight)}"
        )


def check_residual(inputs: Tensor, residual: Tensor) -> None:
    """inputs and residual of one shape and dtype."""
    fits = inputs.shape == residual.shape and inputs.dtype == residual.dtype
    if not fits:
        raise ContractError(f"the residual must match the inputs {_show(inputs)}, got {_show(residual)}")


def check_gate_up(gate_up: Tensor) -> None:
    """gate_up [T, 2K]."""
    fits = gate_up.dim() == 2 and gate_up.shape[1] % 2 == 0
    if not fits:
        raise ContractError(f"a gated activation takes [T, 2K], got {_show(gate_up)}")


def check_output(out: Tensor, result: Tensor) -> None:
    """out of the result's shape and dtype."""
    fits = out.shape == result.shape and out.dtype == result.dtype
    if not fits:
        raise ContractError(f"out must be {_show(result)}, got {_show(out)}")


def check_batch(batch: PagedBatch, kv_cache: Tensor, query_heads: int) -> None:
    """Rows, tables and slots agree with each other and with the cache."""
    if kv_cache.dim() != 5 or kv_cache.shape[1] != 2:
        raise ContractError(f"a KV cache is [N, 2, Hkv, P, D], got {_show(kv_cache)}")
    kv_heads, block_tokens = kv_cache.shape[2:4]
    if query_heads % kv_heads != 0:
        raise ContractError(f"{query_heads} query heads are no multiple of {kv_heads} KV heads")
    _check_rows(batch.query_lengths, batch.sequence_lengths)
    _check_tables(batch, block_tokens=block_tokens)


def _check_rows(query_lengths: Sequence[int], sequence_lengths: Sequence[int]) -> None:
    if not query_lengths or len(sequence_lengths) != len(query_lengths):
        raise ContractError("one query and one sequence length per row, >= 1 row")
    if min(query_lengths) < 1:
        raise ContractError("every row computes at least one token")
    if any(query > total for query, total in zip(query_lengths, sequence_lengths, strict=True)):
        raise ContractError("a row's KV holds at least the tokens it computes")


def _check_tables(batch: PagedBatch, *, block_tokens: int) -> None:
    rows, tables, slots = len(batch.query_lengths), batch.block_tables, batch.slot_mapping
    if tables.dim() != 2 or tables.shape[0] != rows:
        raise ContractError(f"block tables must be [{rows}, M], got {_show(tables)}")
    longest = max(batch.sequence_lengths)
    if tables.shape[1] * block_tokens < longest:
        raise ContractError(f"{tables.shape[1]} blocks of {block_tokens} tokens do not cover {longest} tokens")
    tokens = sum(batch.query_lengths)
    if slots.shape != (tokens,):
        raise ContractError(f"one slot for each of {tokens} tokens, got {_show(slots)}")
    if tables.dtype != torch.int64 or slots.dtype != torch.int64:
        raise ContractError(f"block tables and slots are int64, got {tables.dtype} and {slots.dtype}")


def check_windows(windows: frozenset[int | None]) -> None:
    """At least one; each at least one token."""
    fits = bool(windows) and all(window is None or window >= 1 for window in windows)
    if not fits:
        raise ContractError(f"windows are None or at least one token, and one at least; got {set(windows)}")


def check_form(form: AttentionForm, prepared: PreparedBatch) -> None:
    """The batch was prepared for the form's window."""
    if form.window not in prepared.windows:
        raise ContractError(f"the batch was prepared for windows {set(prepared.windows)}, not for {form.window}")


def check_rope(rope: RopeTables, kv_cache: Tensor, prepared: PreparedBatch) -> None:
    """cos and signed_sin [T, 1, R] of the cache's dtype, R even and at most D."""
    width = rope.cos.shape[-1]
    if width % 2 != 0 or not 0 < width <= prepared.head_dim:
        raise ContractError(f"{width} of {prepared.head_dim} cannot be rotated")
    shape = (prepared.tokens, 1, width)
    for table in (rope.cos, rope.signed_sin):
        if table.shape != shape or table.dtype != kv_cache.dtype:
            raise ContractError(f"rope tables must be {list(shape)} {kv_cache.dtype}, got {_show(table)}")


def check_cache(kv_cache: Tensor, prepared: PreparedBatch) -> None:
    """The layer's cache has the geometry the batch was prepared for, and is contiguous."""
    geometry = (2, prepared.kv_heads, prepared.block_tokens, prepared.head_dim)
    if kv_cache.shape[1:] != geometry:
        raise ContractError(f"the cache must be [N, {geometry}], got {_show(kv_cache)}")
    if not kv_cache.is_contiguous():
        raise ContractError("a layer's cache is contiguous")


def check_qkv(qkv: Tensor, kv_cache: Tensor, prepared: PreparedBatch) -> None:
    """qkv [T, (Hq + 2 Hkv) D] of the cache's dtype."""
    width = (prepared.query_heads + 2 * prepared.kv_heads) * prepared.head_dim
    fits = qkv.shape == (prepared.tokens, width) and qkv.dtype == kv_cache.dtype
    if not fits:
        raise ContractError(f"qkv must be [{prepared.tokens}, {width}] {kv_cache.dtype}, got {_show(qkv)}")


def check_query(query: Tensor, kv_cache: Tensor, prepared: PreparedBatch) -> None:
    """query [T, Hq, D] of the cache's dtype."""
    shape = (prepared.tokens, prepared.query_heads, prepared.head_dim)
    fits = query.shape == shape and query.dtype == kv_cache.dtype
    if not fits:
        raise ContractError(f"query must be {list(shape)} {kv_cache.dtype}, got {_show(query)}")
