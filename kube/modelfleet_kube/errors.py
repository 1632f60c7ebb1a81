"""What the API server can answer, as typed errors of three kinds: the user's, not yet, a bug of ours.

The one place that reads HTTP codes. PURE. Must not decide what to do about an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

# The API server answers 500 to these bodies, and would for ever: they are the manifest's fault. A duplicate key in a
# list-map, a value of the wrong type or an unknown field (all three: typed conversion of an apply patch), and a
# quantity that does not parse. Texts of 1.34, each provoked in tests_kube/test_errors_api_server.py.
USER_FAULT_IN_500 = (
    "duplicate entries for key",
    "failed to create typed patch object",
    "unable to convert unstructured object",
)


class ErrorKind(StrEnum):
    """Who can do something about it."""

    USER = "user"
    NOT_YET = "not-yet"
    BUG = "bug"


class KubeError(Exception):
    """An API request that failed.

    `code` is the HTTP status, 0 where there was no answer; `reason` the API's word for it (`NotFound`);
    `retry_after_seconds` what the server asked for, if it did.
    """

    kind = ErrorKind.BUG

    def __init__(
        self, message: str, *, code: int = 0, reason: str = "", retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds

    def __str__(self) -> str:
        return f"{self.code or 'no answer'} {self.reason}: {self.message}".replace(" :", ":")


class InvalidError(KubeError):
    """400, 413, 422 and the 500s that are the manifest's fault: what was sent can never be accepted."""

    kind = ErrorKind.USER


class ForbiddenError(KubeError):
    """403: missing permission, a quota, or pod security."""

    kind = ErrorKind.USER


class NotFoundError(KubeError):
    """404: no such object, namespace or kind, now."""

    kind = ErrorKind.NOT_YET


class ConflictError(KubeError):
    """409: somebody else changed, owns or already created it."""

    kind = ErrorKind.NOT_YET


class GoneError(KubeError):
    """410: this resourceVersion is too old; list anew."""

    kind = ErrorKind.NOT_YET


class UnavailableError(KubeError):
    """401, 408, 429, 5xx, a closed connection, a timeout: the same request may well work later."""

    kind = ErrorKind.NOT_YET


class ProtocolError(KubeError):
    """Anything else: a request this client should not have sent, or an answer it does not understand."""

    kind = ErrorKind.BUG


_BY_CODE: dict[int, type[KubeError]] = {
    400: InvalidError,
    401: UnavailableError,
    403: ForbiddenError,
    404: NotFoundError,
    408: UnavailableError,
    409: ConflictError,
    410: GoneError,
    413: InvalidError,
    422: InvalidError,
    429: UnavailableError,
}


def error_from_status(status: Mapping[str, Any], *, code: int, retry_after_seconds: float | None = None) -> KubeError:
    """The typed error for a `Status` body (or `{}` where the body was none) that came with HTTP `code`."""
    message = str(status.get("message") or f"the API server answered {code}")
    reason = str(status.get("reason") or "")
    return _error_type(status, code=code, message=message)(
        message, code=code, reason=reason, retry_after_seconds=retry_after_seconds
    )


def _error_type(status: Mapping[str, Any], *, code: int, message: str) -> type[KubeError]:
    if code == 403 and _has_cause(status, "NamespaceTerminating"):
        return UnavailableError
    if code == 500 and any(text in message for text in USER_FAULT_IN_500):
        return InvalidError
    if code >= 500:
        return UnavailableError
    return _BY_CODE.get(code, ProtocolError)


def _has_cause(status: Mapping[str, Any], reason: str) -> bool:
    causes = (status.get("details") or {}).get("causes") or []
    return any(cause.get("reason") == reason for cause in causes)
