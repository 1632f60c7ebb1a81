"""`modelfleet-engine`: the command. Its first act is the SIGTERM handler; everything heavy is imported after it.

As PID 1 of a container a process without a handler ignores SIGTERM, so a pod deleted while Python still imports
would otherwise hang until it is killed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    started_seconds = time.monotonic()
    signal.signal(signal.SIGTERM, _exit_at_once)
    import argparse

    from modelfleet_engine import fetch, settings
    from modelfleet_engine.errors import ExitCode, ModelError, one_line
    from modelfleet_engine.process_end import tell

    parser = argparse.ArgumentParser(
        prog="modelfleet-engine", description="An OpenAI-compatible inference engine for one model."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="serve a model directory over HTTP")
    settings.add_serve_arguments(serve)
    fetch.add_arguments(commands.add_parser("fetch", help="download a model of the Hugging Face Hub, once"))
    arguments = parser.parse_args(argv)
    if arguments.command == "fetch":
        return fetch.run(arguments)
    try:
        options = settings.parse_serve_options(arguments)
    except ValueError as error:
        serve.error(str(error))
    except ModelError as error:
        return tell(one_line(error), ExitCode.BAD_MODEL)
    from modelfleet_engine import server

    server.serve(options, started_seconds=started_seconds)


def _exit_at_once(_signal_number: int, _frame: FrameType | None) -> None:
    """Nothing is loaded and nobody is served yet: there is nothing to drain."""
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
