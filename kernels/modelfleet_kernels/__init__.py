"""The engine's compute ops behind one shape contract, whichever backend runs them.

`select(device, requested)` answers the `Kernels` to call; `types` says what goes in. Imports nothing else of ours and
knows no model, no request and no scheduler.
"""

from modelfleet_kernels.kernels import Kernels
from modelfleet_kernels.registry import BackendUnavailableError, available_backends, select
from modelfleet_kernels.torch_cpu.linear import cpu_computes_bfloat16
from modelfleet_kernels.types import (
    Activation,
    AttentionForm,
    DecoderLayer,
    DecoderStack,
    Needs,
    PackedLinear,
    PagedBatch,
    PreparedBatch,
    RopeTables,
)

__all__ = [
    "Activation",
    "AttentionForm",
    "BackendUnavailableError",
    "DecoderLayer",
    "DecoderStack",
    "Kernels",
    "Needs",
    "PackedLinear",
    "PagedBatch",
    "PreparedBatch",
    "RopeTables",
    "available_backends",
    "cpu_computes_bfloat16",
    "select",
]
