"""The operator's routing table: which kopf event goes where, and the process's entry point. Nothing else.

`on.event` writes nothing to the objects, and kopf never retries it, so the handler only passes the event on.
"""

# mypy: disallow-untyped-decorators=False
# (kopf's types are left out of the checks, see pyproject.toml.)

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import Any

import kopf
import uvloop
from modelfleet_api import names
from modelfleet_kube.connection import Connection, ConnectionConfigError, load_connection

from modelfleet_operator.kopf_setup import KopfLogin, kopf_settings
from modelfleet_operator.logs import configure_logs
from modelfleet_operator.runtime import Runtime
from modelfleet_operator.settings import Settings, SettingsError, load_settings

logger = logging.getLogger(__name__)

EXIT_CONFIGURATION = 2


@kopf.on.startup()
async def start(memo: kopf.Memo, **_: Any) -> None:
    """Before kopf watches anything: probes, caches, leadership, workers."""
    await memo.runtime.start()


@kopf.on.cleanup()
async def stop(memo: kopf.Memo, **_: Any) -> None:
    """After SIGTERM: workers first, then the lease."""
    await memo.runtime.stop()


@kopf.on.login()
async def login(memo: kopf.Memo, **_: Any) -> kopf.ConnectionInfo:
    """The credentials of our own client."""
    credentials: kopf.ConnectionInfo = await memo.login.credentials()
    return credentials


@kopf.on.event(names.GROUP, names.VERSION, names.PLURAL)
async def on_model_event(event: kopf.RawEvent, memo: kopf.Memo, **_: Any) -> None:
    """Into the cache, which marks the key dirty if anything is new."""
    # The cache strips what it does not need, and the original is kopf's.
    manifest = {**event["object"], "metadata": {**event["object"]["metadata"]}}
    memo.runtime.caches.take_model_event(event["type"], manifest)


async def run(settings: Settings, connection: Connection) -> int:
    """Runs until SIGTERM, or until a part of it failed; returns the exit code."""
    runtime = Runtime(settings, connection)
    await kopf.operator(
        clusterwide=True,
        settings=kopf_settings(),
        memo=kopf.Memo(runtime=runtime, login=KopfLogin(connection)),
        # kopf would ask for the user's name, and a container's user id has none.
        identity=settings.pod_name,
        stop_flag=runtime.stop_flag,
    )
    return runtime.exit_code


def main() -> None:
    """`modelfleet-operator`. Exit code 2: the environment cannot be used; the reason is on standard error."""
    try:
        settings = load_settings(os.environ)
        connection = load_connection()
    except (SettingsError, ConnectionConfigError) as error:
        sys.stderr.write(f"modelfleet-operator cannot start:\n{error}\n")
        sys.exit(EXIT_CONFIGURATION)
    configure_logs(settings.log_level)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            exit_code = runner.run(run(settings, connection))
        except Exception:
            # Only so that the last line is JSON like all the others; the process still ends.
            logger.exception("the operator ends because of an error")
            exit_code = 1
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
