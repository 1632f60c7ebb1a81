"""The last words of a process and its exit code: for the person at the terminal, the kubelet and the log."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from modelfleet_engine.errors import ExitCode, exit_code_of, one_line, write_termination_message
from modelfleet_engine.logs import log_event, log_failure


def explain(error: BaseException) -> ExitCode:
    """Tells what went wrong, with the traceback in the log if it was a bug; says how the process should end."""
    code = exit_code_of(error)
    message = one_line(error)
    if code is ExitCode.BUG:
        log_failure("failed", error)
        message = f"{message} (at {_place(error)})"
    else:
        log_event("failed", error=message, exit_code=int(code))
    return tell(message, code)


def _place(error: BaseException) -> str:
    """Where in the source the error was raised, for a one-line message."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an unknown place"


def tell(message: str, code: ExitCode) -> ExitCode:
    """One line for the person at the terminal and one for the kubelet."""
    write_termination_message(message)
    sys.stderr.write(f"modelfleet-engine: {message}\n")
    return code


def exit_process(code: ExitCode) -> NoReturn:
    """Ends the process without waiting for threads that load or hang."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
