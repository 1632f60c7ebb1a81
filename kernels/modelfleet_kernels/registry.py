"""Which backends exist and which one a device gets. An explicit wish is granted or refused, never replaced."""

from __future__ import annotations

import logging

from modelfleet_kernels.kernels import Kernels
from modelfleet_kernels.reference.backend import ReferenceBackend
from modelfleet_kernels.torch_cpu.backend import TorchCpuBackend
from modelfleet_kernels.types import Backend

_log = logging.getLogger(__name__)

# Per device, best first.
_BACKENDS: dict[str, tuple[type[Backend], ...]] = {
    "cpu": (TorchCpuBackend, ReferenceBackend),
    "cuda": (ReferenceBackend,),
}
_NAMES: dict[type[Backend], str] = {TorchCpuBackend: "torch_cpu", ReferenceBackend: "reference"}


class BackendUnavailableError(Exception):
    """The requested backend does not run on this device; the message names those that do."""


def available_backends(device: str) -> tuple[str, ...]:
    """Names of the backends that run on `device` ("cpu" or "cuda"), best first."""
    return tuple(_NAMES[backend] for backend in _BACKENDS.get(device, ()))


def select(device: str, requested: str | None = None) -> Kernels:
    """The ops for `device`: of the backend `requested`, or of the best one, which is then logged.

    Raises:
        BackendUnavailableError: `requested` (or any backend at all) is not available on `device`.
    """
    candidates = _BACKENDS.get(device, ())
    names = available_backends(device)
    if requested is not None:
        if requested not in names:
            message = (
                f"kernel backend {requested!r} is not available on {device!r}; available: {', '.join(names) or 'none'}"
            )
            raise BackendUnavailableError(message)
        return Kernels(candidates[names.index(requested)]())
    if not candidates:
        raise BackendUnavailableError(f"no kernel backend for device {device!r}; devices: {', '.join(_BACKENDS)}")
    _log.info("kernel backend %s chosen for %s (available: %s)", names[0], device, ", ".join(names))
    return Kernels(candidates[0]())
