"""The engine's errors and exit codes: whose fault, what to tell the client, how the process ends.

Must not import torch or aiohttp: the command line, the scheduler's side and the HTTP side all use it.
"""

from __future__ import annotations

import errno
import os
from enum import IntEnum
from pathlib import Path

TERMINATION_LOG = "/dev/termination-log"
# Kubernetes keeps at most 4096 bytes of a termination message.
TERMINATION_MESSAGE_BYTES = 4096


class ExitCode(IntEnum):
    """How the process ends. 2 is argparse's own (wrong usage)."""

    OK = 0
    BUG = 1
    BAD_MODEL = 3
    OUT_OF_MEMORY = 4
    HUNG_STEP = 5


class ModelError(Exception):
    """The user's error: this model or this configuration cannot be served. The message says what, limit, given."""


class RequestError(Exception):
    """The client's error: becomes an OpenAI-shaped 4xx body (or 503 "not yet") that names the field.

    `param` is the field, `code` a stable word for programs, `retry_after_seconds` the hint of a 429 or 503.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.code = code
        self.retry_after_seconds = retry_after_seconds

    @property
    def error_type(self) -> str:
        """OpenAI's `error.type` for this status."""
        if self.status == 429:
            return "rate_limit_error"
        if self.status == 504:
            return "timeout_error"
        return "invalid_request_error" if self.status < 500 else "service_unavailable_error"


class GenerationCutError(Exception):
    """A running generation ends before its time: the drain's deadline passed, or the engine failed."""

    def __init__(self, message: str, *, status: int, code: str) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code that tells an operator what kind of failure `error` was."""
    if isinstance(error, ModelError):
        return ExitCode.BAD_MODEL
    return ExitCode.OUT_OF_MEMORY if _is_out_of_memory(error) else ExitCode.BUG


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # torch's OutOfMemoryError is a RuntimeError; its CPU allocator raises a plain one, worded differently by system.
    is_torch_oom = isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError"
        or "not enough memory" in str(error)
        or "can't allocate memory" in str(error)
    )
    return is_torch_oom or isinstance(error, MemoryError)


def one_line(error: BaseException) -> str:
    """The error in one line: users' errors as written, out of memory in these words, bugs with their type."""
    text = " ".join(str(error).split())
    if isinstance(error, ModelError):
        return text
    line = f"{type(error).__name__}: {text}".rstrip(": ")
    return f"out of memory: {line}" if _is_out_of_memory(error) else line


def write_termination_message(message: str) -> None:
    """Leaves `message` where the kubelet reads it, if there is such a file (not outside Kubernetes)."""
    path = Path(os.environ.get("MODELFLEET_TERMINATION_LOG", TERMINATION_LOG))
    if path.is_file() and os.access(path, os.W_OK):
        path.write_bytes(message.encode()[:TERMINATION_MESSAGE_BYTES])
