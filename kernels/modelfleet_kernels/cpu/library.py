"""The compiled library: where it lies, what it takes, and why it may not run here. No torch in its interface."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from pathlib import Path

LIBRARY = Path(__file__).with_name("libmodelfleet_cpu.so")

_POINTER, _INT64, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class LinearStruct(ctypes.Structure):
    """`Linear` of linear.hpp."""

    _fields_ = (("panels", _POINTER), ("bias", _POINTER), ("outputs", _INT64), ("inputs", _INT64))


class CacheStruct(ctypes.Structure):
    """`Cache` of cache.hpp."""

    _fields_ = (("memory", _POINTER), ("kv_heads", _INT64), ("block_tokens", _INT64), ("head_dim", _INT64))


class BatchStruct(ctypes.Structure):
    """`Batch` of attention.hpp."""

    _fields_ = (
        ("tokens", _INT64),
        ("rows", _INT64),
        ("table_width", _INT64),
        ("starts", _POINTER),
        ("lengths", _POINTER),
        ("tables", _POINTER),
        ("slots", _POINTER),
    )


class AttentionFormStruct(ctypes.Structure):
    """`AttentionForm` of attention.hpp."""

    _fields_ = (("scale", _FLOAT), ("soft_cap", _FLOAT), ("window", _INT64))


class HeadsStruct(ctypes.Structure):
    """`Heads` of rows.hpp."""

    _fields_ = (
        ("query_heads", _INT64),
        ("kv_heads", _INT64),
        ("head_dim", _INT64),
        ("query_norm", _POINTER),
        ("key_norm", _POINTER),
        ("epsilon", _FLOAT),
    )


class RopeStruct(ctypes.Structure):
    """`Rope` of rows.hpp."""

    _fields_ = (("cos", _POINTER), ("signed_sin", _POINTER), ("width", _INT64))


class LayerStruct(ctypes.Structure):
    """`Layer` of decoder.hpp."""

    _fields_ = (
        ("qkv", LinearStruct),
        ("output", LinearStruct),
        ("gate_up", LinearStruct),
        ("down", LinearStruct),
        ("input_norm", _POINTER),
        ("query_norm", _POINTER),
        ("key_norm", _POINTER),
        ("output_norm", _POINTER),
        ("mlp_norm", _POINTER),
        ("mlp_output_norm", _POINTER),
        ("window", _INT64),
        ("rope", _INT64),
    )


class DecoderStruct(ctypes.Structure):
    """`Decoder` of decoder.hpp."""

    _fields_ = (
        ("hidden", _INT64),
        ("intermediate", _INT64),
        ("query_heads", _INT64),
        ("kv_heads", _INT64),
        ("head_dim", _INT64),
        ("block_tokens", _INT64),
        ("activation", _INT64),
        ("layer_count", _INT64),
        ("epsilon", _FLOAT),
        ("attention_scale", _FLOAT),
        ("soft_cap", _FLOAT),
        ("final_norm", _POINTER),
        ("layers", _POINTER),
    )


class StepStruct(ctypes.Structure):
    """`Step` of decoder.hpp."""

    _fields_ = (
        ("batch", BatchStruct),
        ("residual", _POINTER),
        ("ropes", _POINTER),
        ("caches", _POINTER),
        ("outputs", _POINTER),
        ("output_count", _INT64),
        ("hidden", _POINTER),
    )


_LINEAR, _TEAM = ctypes.POINTER(LinearStruct), _POINTER
_FUNCTIONS: dict[str, tuple[type | None, Sequence[type]]] = {
    "team_create": (_TEAM, (ctypes.c_int,)),
    "packed_numbers": (_INT64, (_INT64, _INT64)),
    "pack": (None, (_TEAM, _POINTER, _INT64, _INT64, _POINTER)),
    "unpack_rows": (None, (_TEAM, _LINEAR, _POINTER, _INT64, _POINTER)),
    "linear": (None, (_TEAM, _LINEAR, _POINTER, _INT64, _POINTER)),
    "linear_float": (None, (_TEAM, _LINEAR, _POINTER, _INT64, _POINTER)),
    "gated_linear": (None, (_TEAM, _LINEAR, _POINTER, _INT64, _INT64, _POINTER)),
    "rms_norm": (None, (_TEAM, _POINTER, _INT64, _INT64, _POINTER, _FLOAT, _POINTER)),
    "gated": (None, (_TEAM, _POINTER, _INT64, _INT64, _INT64, _POINTER)),
    "rope_write_kv": (
        None,
        (
            _TEAM,
            ctypes.POINTER(HeadsStruct),
            ctypes.POINTER(RopeStruct),
            ctypes.POINTER(CacheStruct),
            *(_POINTER, _INT64, _POINTER, _POINTER),
        ),
    ),
    "paged_attention": (
        None,
        (
            _TEAM,
            ctypes.POINTER(BatchStruct),
            ctypes.POINTER(AttentionFormStruct),
            ctypes.POINTER(CacheStruct),
            *(_POINTER, _INT64, _POINTER),
        ),
    ),
    "run_decoder": (None, (_TEAM, ctypes.POINTER(DecoderStruct), ctypes.POINTER(StepStruct))),
}


@functools.cache
def unavailable_reason() -> str | None:
    """Why the library does not run here, or None."""
    if not LIBRARY.exists():
        return f"{LIBRARY.name} is not built (kernels/native/build.sh; only for x86-64)"
    try:
        loaded = ctypes.CDLL(str(LIBRARY))
    except OSError as error:  # cut short, or for another machine or an older C library
        return f"{LIBRARY.name} cannot be loaded: {error}"
    if not loaded.modelfleet_cpu_is_supported():
        return "this CPU lacks AVX-512 with bfloat16 products"
    if not hasattr(loaded, "modelfleet_struct_bytes") or loaded.modelfleet_struct_bytes() != _struct_bytes():
        return f"{LIBRARY.name} was built from other sources than these modules (kernels/native/build.sh builds it)"
    return None


def _struct_bytes() -> int:
    structs = (LinearStruct, CacheStruct, BatchStruct, AttentionFormStruct, HeadsStruct, RopeStruct)
    return sum(ctypes.sizeof(struct) for struct in (*structs, LayerStruct, DecoderStruct, StepStruct))


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library with its functions typed. Call it only where `unavailable_reason` is None."""
    loaded = ctypes.CDLL(str(LIBRARY))
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(loaded, f"modelfleet_{name}")
        function.restype, function.argtypes = result, list(arguments)
    return loaded


@functools.cache
def team(threads: int) -> int:
    """A team of `threads` threads, the caller's among them; one for each number, kept for the process's life."""
    created: int = library().modelfleet_team_create(threads)
    return created


# A forked child has none of its parent's threads: it would wait for them forever.
os.register_at_fork(after_in_child=team.cache_clear)
