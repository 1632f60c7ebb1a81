"""Which backends exist and which one a device gets. An explicit wish is granted or refused, never replaced."""

from __future__ import annotations

import logging

from modelfleet_kernels.cpu.backend import CpuBackend
from modelfleet_kernels.kernels import Kernels
from modelfleet_kernels.reference.backend import ReferenceBackend
from modelfleet_kernels.torch_cpu.backend import TorchCpuBackend
from modelfleet_kernels.types import Backend, Needs

_log = logging.getLogger(__name__)

# Per device, best first.
_BACKENDS: dict[str, tuple[type[Backend], ...]] = {
    "cpu": (CpuBackend, TorchCpuBackend, ReferenceBackend),
    "cuda": (ReferenceBackend,),
}
_NAMES: dict[type[Backend], str] = {
    CpuBackend: "cpu",
    TorchCpuBackend: "torch_cpu",
    ReferenceBackend: "reference",
}


class BackendUnavailableError(Exception):
    """The requested backend does not run on this device or with this model; the message says why, or which do."""


def available_backends(device: str) -> tuple[str, ...]:
    """Names of the backends that run on `device` ("cpu" or "cuda") of this machine, best first."""
    return tuple(_NAMES[backend] for backend in _BACKENDS.get(device, ()) if backend.unavailable_reason() is None)


def select(device: str, requested: str | None = None, *, needs: Needs | None = None) -> Kernels:
    """The ops for `device`: of the backend `requested`, or of the best one that computes `needs`, which is then logged.

    Raises:
        BackendUnavailableError: `requested` (or any backend at all) does not run on `device`, or not what is needed.
    """
    if requested is not None:
        return Kernels(_requested(device, requested, needs))
    reasons: list[str] = []
    for backend_type in _BACKENDS.get(device, ()):
        reason, backend = _instance(backend_type, needs)
        if backend is not None:
            left_out = f" (not {'; not '.join(reasons)})" if reasons else ""
            _log.info("kernel backend %s chosen for %s%s", backend.name, device, left_out)
            return Kernels(backend)
        reasons.append(f"{_NAMES[backend_type]}: {reason}")
    raise BackendUnavailableError(f"no kernel backend for device {device!r}; devices: {', '.join(_BACKENDS)}")


def _requested(device: str, requested: str, needs: Needs | None) -> Backend:
    for backend_type in _BACKENDS.get(device, ()):
        if _NAMES[backend_type] == requested:
            reason, backend = _instance(backend_type, needs)
            if backend is None:
                raise BackendUnavailableError(f"kernel backend {requested!r} cannot be used: {reason}")
            return backend
    names = ", ".join(available_backends(device)) or "none"
    raise BackendUnavailableError(f"kernel backend {requested!r} is not available on {device!r}; available: {names}")


def _instance(backend_type: type[Backend], needs: Needs | None) -> tuple[str | None, Backend | None]:
    """Why not, or the backend."""
    reason = backend_type.unavailable_reason()
    if reason is not None:
        return reason, None
    backend = backend_type()
    reason = None if needs is None else backend.refusal(needs)
    return reason, None if reason is not None else backend
