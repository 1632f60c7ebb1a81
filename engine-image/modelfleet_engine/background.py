"""Work beside the event loop: timed, and on threads that never keep the process alive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from threading import Thread
from typing import TypeVar, cast

_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")


def timed(call: Callable[[_Argument], _Result], argument: _Argument) -> tuple[_Result, float]:
    """Result and seconds."""
    before = time.monotonic()
    return call(argument), time.monotonic() - before


async def in_daemon_thread(call: Callable[[], _Result]) -> _Result:
    """Like `asyncio.to_thread`, in a thread that does not keep the process alive."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Result] = loop.create_future()

    def settle(result: _Result | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast(_Result, result))

    def run() -> None:
        try:
            result = call()
        except BaseException as error:
            loop.call_soon_threadsafe(settle, None, error)
        else:
            loop.call_soon_threadsafe(settle, result, None)

    Thread(target=run, name="load", daemon=True).start()
    return await future
