"""One HTTP exchange with the API server: headers, JSON, timeouts, typed errors, and a record of each request.

Must not retry, and must not log bodies or tokens: callers know what a failure means.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from modelfleet_kube.connection import Connection
from modelfleet_kube.errors import KubeError, ProtocolError, UnavailableError, error_from_status

CONNECT_TIMEOUT_SECONDS = 10.0
REQUEST_TIMEOUT_SECONDS = 30.0
# The kubelet replaces a token well before it expires; a minute of delay is what client-go allows itself too.
TOKEN_LIFE_SECONDS = 60.0
USER_AGENT = "modelfleet"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One finished request, for metrics and for tests that count. `code` 0: no answer."""

    verb: str
    resource: str
    subresource: str
    code: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What to send. `verb` and `resource` are Kubernetes' words (`patch`, `pods`), for the record only."""

    method: str
    path: str
    verb: str
    resource: str
    subresource: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    content_type: str = "application/json"


class Transport:
    """An aiohttp session bound to one API server. Open it inside a running event loop, close it when done."""

    def __init__(self, connection: Connection, *, on_request: Callable[[RequestRecord], None] | None = None) -> None:
        self._connection = connection
        self._on_request = on_request
        self._token: str | None = None
        self._token_read_at: float | None = None
        # limit=0: watches hold a connection each; how many requests run at once is the callers' affair.
        connector = aiohttp.TCPConnector(ssl=connection.ssl_context(), limit=0)
        self._session = aiohttp.ClientSession(connector=connector, headers={"User-Agent": USER_AGENT})

    async def close(self) -> None:
        """Closes every connection; open watches end with UnavailableError."""
        await self._session.close()

    async def send(self, exchange: Exchange, *, timeout_seconds: float = REQUEST_TIMEOUT_SECONDS) -> dict[str, Any]:
        """The decoded answer. Raises a KubeError for anything but a 2xx with a JSON object."""
        timeout = aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=CONNECT_TIMEOUT_SECONDS)
        async with self.open(exchange, timeout=timeout) as response:
            return _decode(await response.read(), code=response.status)

    @asynccontextmanager
    async def open(
        self, exchange: Exchange, *, timeout: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The open response of a 2xx, to be read inside the block. Raises a KubeError for anything else."""
        started = time.monotonic()
        code = 0
        try:
            async with self._session.request(
                exchange.method,
                f"{self._connection.server}{exchange.path}",
                params=exchange.query,
                data=None if exchange.body is None else orjson.dumps(exchange.body),
                headers=self._headers(exchange),
                timeout=timeout,
            ) as response:
                code = response.status
                if code >= 400:
                    raise await self._error(response)
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            message = f"{exchange.verb} {exchange.path}: {type(error).__name__} {error}".rstrip()
            raise UnavailableError(message, code=code, reason="ConnectionError") from error
        finally:
            self._record(exchange, code=code, seconds=time.monotonic() - started)

    def _headers(self, exchange: Exchange) -> dict[str, str]:
        headers = {"Accept": "application/json", "Content-Type": exchange.content_type}
        token = self._current_token()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return headers

    def _current_token(self) -> str | None:
        now = time.monotonic()
        if self._token_read_at is None or now - self._token_read_at > TOKEN_LIFE_SECONDS:
            self._token = self._connection.bearer_token()
            self._token_read_at = now
        return self._token

    async def _error(self, response: aiohttp.ClientResponse) -> KubeError:
        if response.status == 401:
            self._token_read_at = None  # The file may hold a newer one: the caller's retry reads it.
        body = await response.read()
        try:
            status = _decode(body, code=response.status)
        except ProtocolError:
            # Proxies and load balancers answer in HTML or plain text; the code alone still says enough.
            status = {"message": body[:300].decode("utf-8", errors="replace").strip()}
        return error_from_status(
            status, code=response.status, retry_after_seconds=_seconds(response.headers.get("Retry-After"))
        )

    def _record(self, exchange: Exchange, *, code: int, seconds: float) -> None:
        if self._on_request is not None:
            self._on_request(
                RequestRecord(
                    verb=exchange.verb,
                    resource=exchange.resource,
                    subresource=exchange.subresource,
                    code=code,
                    seconds=seconds,
                )
            )


def _decode(body: bytes, *, code: int) -> dict[str, Any]:
    try:
        decoded = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"the answer is not JSON: {body[:100]!r}", code=code) from error
    if not isinstance(decoded, dict):
        raise ProtocolError(f"the answer is not a JSON object: {body[:100]!r}", code=code)
    return decoded


def _seconds(retry_after: str | None) -> float | None:
    return float(retry_after) if retry_after and retry_after.isdigit() else None
