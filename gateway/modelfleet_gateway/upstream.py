"""The gateway's side towards engines: one client session, and answers as chunks with every failure named.

Four clocks: connecting, the first byte, silence between bytes, and the whole request's deadline. Must not know what a
retry is: it says what happened, `proxy` decides.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncGenerator, Mapping
from enum import StrEnum
from types import TracebackType
from typing import NamedTuple, Self

import aiohttp
from yarl import URL

from modelfleet_gateway.config import TimeoutsConfig

# An engine's answer head; ours send some hundred bytes.
_MAX_ANSWER_HEADER_BYTES = 32 * 1024
# Below what engines and proxies keep an idle connection: the end that closes first must be ours.
_KEEP_ALIVE_SECONDS = 30.0
_MAX_BODY_AT_ONCE_BYTES = 512 * 1024
PROBE_CONNECT_SECONDS = 2.0
# Engines send a heartbeat every 15 s.
SILENT_SECONDS = 60.0
_MAX_LINE_BYTES = 256 * 1024


class Failure(StrEnum):
    """What went wrong with an engine's answer."""

    # No connection: nothing was sent, so nothing can have been computed.
    CONNECT = "connect"
    # The connection ended before the answer did.
    BROKEN = "broken"
    FIRST_BYTE_TIMEOUT = "first_byte_timeout"
    IDLE_TIMEOUT = "idle_timeout"
    # The request's own deadline: not the engine's fault.
    DEADLINE = "deadline"


class UpstreamError(Exception):
    """An engine's answer did not come, or not to its end."""

    def __init__(self, failure: Failure, detail: str) -> None:
        super().__init__(f"{failure}: {detail}")
        self.failure = failure


class _Clock:
    """One timer for an answer's three limits, looked at again only when it fires: a chunk costs one assignment."""

    def __init__(self, task: asyncio.Task[object], timeouts: TimeoutsConfig, deadline: float) -> None:
        self._task = task
        self._idle_seconds = timeouts.idle_seconds
        self._deadline = deadline
        self.last_byte: float | None = None
        self.expired: Failure | None = None
        # On the engine, as opposed to a slow client.
        self.is_waiting = True
        self._first_byte_at = time.monotonic() + timeouts.first_byte_seconds
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._limit() - time.monotonic(), self._check)

    def _limit(self) -> float:
        silent_until = self._first_byte_at if self.last_byte is None else self.last_byte + self._idle_seconds
        return min(silent_until, self._deadline)

    def _check(self) -> None:
        now = time.monotonic()
        if now >= self._deadline:
            self.expired = Failure.DEADLINE
            self._task.cancel()
            return
        if not self.is_waiting:
            # A slow client, not a silent engine: the engine's clock starts when it is listened to again.
            self.last_byte = now
        limit = self._limit()
        if now < limit:
            self._timer = self._loop.call_later(limit - now, self._check)
            return
        self.expired = Failure.FIRST_BYTE_TIMEOUT if self.last_byte is None else Failure.IDLE_TIMEOUT
        self._task.cancel()

    def note_byte(self) -> None:
        """Something came. The limit only moves away from then on, but for the first time."""
        is_first = self.last_byte is None
        self.last_byte = time.monotonic()
        if is_first:
            self._timer.cancel()
            self._timer = self._loop.call_later(self._limit() - self.last_byte, self._check)

    def stop(self) -> None:
        self._timer.cancel()


class Answer:
    """An engine's answer whose head has come. An async context: leaving it closes what was not read."""

    def __init__(self, response: aiohttp.ClientResponse, clock: _Clock) -> None:
        self._response = response
        self._clock = clock
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the connection back if the answer was read to its end, else closes it: the engine then stops."""
        self._clock.stop()
        self._response.close()

    async def read_chunk(self) -> bytes:
        """What arrived since the last call, as soon as there is something; b"" at the end.

        Raises:
            UpstreamError: the answer ended before its end, or took too long.
        """
        clock = self._clock
        clock.is_waiting = True
        try:
            chunk = await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamError(Failure.BROKEN, type(error).__name__) from error
        except asyncio.CancelledError:
            _raise_expired(clock)
            raise
        finally:
            clock.is_waiting = False
        clock.note_byte()
        return chunk

    async def read_all(self, *, limit_bytes: int) -> bytes:
        """The whole body.

        Raises:
            UpstreamError: as `read_chunk`, or the body is larger than `limit_bytes`.
        """
        parts: list[bytes] = []
        size = 0
        while chunk := await self.read_chunk():
            size += len(chunk)
            if size > limit_bytes:
                raise UpstreamError(Failure.BROKEN, f"an answer of more than {limit_bytes} bytes")
            parts.append(chunk)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _raise_expired(clock: _Clock) -> None:
    """Tells the clock's cancellation from one that came from outside, and takes the former back."""
    if clock.expired is None:
        return
    task = asyncio.current_task()
    if task is not None and task.uncancel() > 0:
        return
    raise UpstreamError(clock.expired, "the time is over") from None


class ProbeAnswer(NamedTuple):
    """Of one small question."""

    status: int
    body: bytes


class Upstream:
    """The session. Open it inside a running loop, close it when nothing is in flight."""

    def __init__(self, timeouts: TimeoutsConfig) -> None:
        self._timeouts = timeouts
        self._urls: dict[tuple[str, str], URL] = {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS, ttl_dns_cache=10),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect_seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept", "Content-Type"),
            max_field_size=_MAX_ANSWER_HEADER_BYTES,
        )

    async def close(self) -> None:
        """Closes all connections."""
        await self._session.close()

    async def post(
        self, base_url: str, path: str, *, body: bytes, headers: Mapping[str, str], deadline: float
    ) -> Answer:
        """Sends one request and waits for the head of its answer. `deadline` is on the monotonic clock.

        Raises:
            UpstreamError: no head came.
        """
        task = asyncio.current_task()
        assert task is not None, "a request is served by a task"
        clock = _Clock(task, self._timeouts, deadline)
        try:
            response = await self._session.post(
                self._url(base_url, path),
                # aiohttp writes bytes at once, and warns where that would hold up everybody else.
                data=body if len(body) <= _MAX_BODY_AT_ONCE_BYTES else io.BytesIO(body),
                headers=headers,
                allow_redirects=False,
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            clock.stop()
            raise UpstreamError(Failure.CONNECT, type(error).__name__) from error
        except (aiohttp.ClientError, OSError) as error:
            clock.stop()
            raise UpstreamError(Failure.BROKEN, type(error).__name__) from error
        except BaseException as error:
            clock.stop()
            if isinstance(error, asyncio.CancelledError):
                _raise_expired(clock)
            raise
        clock.is_waiting = False
        return Answer(response, clock)

    async def get(self, base_url: str, path: str, *, headers: Mapping[str, str], timeout_seconds: float) -> ProbeAnswer:
        """One small question of our own. Raises OSError, TimeoutError or aiohttp.ClientError."""
        timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        async with self._session.get(
            self._url(base_url, path), headers=headers, timeout=timeout, allow_redirects=False
        ) as response:
            return ProbeAnswer(response.status, await response.read())

    async def lines(
        self, base_url: str, path: str, *, headers: Mapping[str, str]
    ) -> AsyncGenerator[bytes | None, None]:
        """The lines of an endless answer; None once if it is not that. Raises OSError or aiohttp.ClientError."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=PROBE_CONNECT_SECONDS, sock_read=SILENT_SECONDS)
        async with self._session.get(
            self._url(base_url, path),
            headers=headers,
            timeout=timeout,
            allow_redirects=False,
            read_bufsize=_MAX_LINE_BYTES,
        ) as response:
            if response.status != 200:
                if response.status == 404:
                    yield None
                return
            rest = b""
            while chunk := await response.content.readany():
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    yield line

    def _url(self, base_url: str, path: str) -> URL:
        # Parsing one takes longer than sending it; engines come and go, so the table is emptied when it has grown.
        url = self._urls.get((base_url, path))
        if url is None:
            if len(self._urls) > 10_000:
                self._urls.clear()
            url = self._urls[base_url, path] = URL(base_url + path)
        return url
