"""What is too large, too slow or no HTTP at all is refused, in OpenAI's shape where there is a way to tell."""

from __future__ import annotations

import asyncio
import time

import orjson
import pytest
from modelfleet_gateway import listener

from tests_gateway.mock_engine import MockEngine
from tests_gateway.serving import CHAT, Served, serving, until


@pytest.fixture(autouse=True)
def _short_lingering(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests read up to the end of the connection, which comes when the rest of the body was waited for."""
    monkeypatch.setattr(listener, "LINGERING_SECONDS", 0.05)


async def _raw(gateway: Served, data: bytes, *, timeout_seconds: float = 5.0) -> bytes:
    """Sends bytes and returns everything up to the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.gateway.port)
    try:
        writer.write(data)
        await writer.drain()
        async with asyncio.timeout(timeout_seconds):
            return await reader.read()
    finally:
        writer.close()


def _head(**headers: str) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{lines}\r\n".encode()


def _error_of(answer: bytes) -> dict[str, object]:
    error: dict[str, object] = orjson.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    return error


async def test_a_body_that_announces_too_much_is_413_before_it_is_read() -> None:
    async with serving(MockEngine(), bounds={"bodyBytes": 1000}) as gateway:
        answer = await _raw(gateway, _head(Content_Length="1001"))
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert _error_of(answer)["code"] == "body_too_large"


async def test_a_chunked_body_that_grows_too_large_is_413() -> None:
    async with serving(MockEngine(), bounds={"bodyBytes": 1000}) as gateway:
        chunk = b"200\r\n" + b"a" * 512 + b"\r\n"
        answer = await _raw(gateway, _head(Transfer_Encoding="chunked") + chunk * 3)
        assert answer.startswith(b"HTTP/1.1 413 ")


async def test_a_body_that_does_not_come_is_408() -> None:
    async with serving(MockEngine(), timeouts={"bodySeconds": 0.1}) as gateway:
        answer = await _raw(gateway, _head(Content_Length="10") + b"{")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert _error_of(answer)["code"] == "body_timeout"


async def test_a_head_that_drips_is_closed() -> None:
    async with serving(MockEngine(), timeouts={"headerSeconds": 0.15}) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.gateway.port)
        started = time.monotonic()
        writer.write(b"POST / HTTP/1.1\r\n")
        closed = asyncio.create_task(reader.read())
        while not closed.done() and time.monotonic() - started < 3:
            writer.write(b"x: y\r\n")
            await asyncio.sleep(0.02)
        assert await closed == b""
        assert 0.1 < time.monotonic() - started < 1
        writer.close()


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        _head(Content_Length="ten"),
        _head(x_long="y" * 20_000),
        _head(**{f"x-{number}": "1" for number in range(200)}),
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
async def test_what_is_no_proper_http_is_400_and_the_connection_ends(data: bytes) -> None:
    async with serving(MockEngine()) as gateway:
        answer = await _raw(gateway, data)
        assert answer.startswith(b"HTTP/1.1 400 ") or answer.startswith(b"HTTP/1.0 400 ")
        assert _error_of(answer)["code"] == "invalid_http"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b'{"model": 5}', "model"),
        (b'{"model": "chat.default", "stream": "yes"}', "stream"),
        (b'{"model": "chat.default", "priority": 1.5}', "priority"),
        (b'{"messages": []}', "model"),
        (b"\xff\xfe", None),
        (b"[" * 100_000, None),
    ],
)
async def test_a_body_that_cannot_be_routed_is_400_and_names_the_field(body: bytes, param: str | None) -> None:
    engine = MockEngine()
    async with serving(engine) as gateway:
        async with gateway.http.post(gateway.url + CHAT, data=body) as response:
            error = (await response.json())["error"]
            assert response.status == 400
        assert error["param"] == param
        assert engine.received == []


async def test_unknown_paths_and_methods_are_told_apart() -> None:
    async with serving(MockEngine()) as gateway:
        async with gateway.http.get(gateway.url + "/v1/nothing") as response:
            assert response.status == 404
        async with gateway.http.get(gateway.url + CHAT) as response:
            assert response.status == 405
            assert response.headers["Allow"] == "POST"
        for path in ("/metrics", "/internal/demand", "/internal/endpoints"):
            async with gateway.http.get(gateway.url + path) as response:
                assert response.status == 404


async def test_expect_100_continue_is_answered_before_the_body() -> None:
    engine = MockEngine()
    body = b'{"model":"chat.default","messages":[]}'
    async with serving(engine) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.gateway.port)
        writer.write(_head(Content_Length=str(len(body)), Expect="100-continue"))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()
    assert engine.received[0].body["messages"] == []


async def test_no_connection_is_left_after_clients_that_misbehave() -> None:
    async with serving(MockEngine()) as gateway:
        for data in (b"nonsense\r\n\r\n", _head(Content_Length="ten"), b""):
            _, writer = await asyncio.open_connection("127.0.0.1", gateway.gateway.port)
            writer.write(data)
            writer.close()
        await until(lambda: gateway.gateway.connections == 0)
