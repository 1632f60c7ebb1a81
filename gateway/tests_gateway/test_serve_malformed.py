"""Ten thousand requests that are not what they should be: no crash, no 5xx of our making, no connection left."""

from __future__ import annotations

import asyncio
import random

from tests_gateway.mock_engine import MockEngine
from tests_gateway.serving import CHAT, serving, until

REQUESTS = 10_000
AT_ONCE = 250
_GOOD = (
    b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    b'Content-Length: 58\r\n\r\n{"model":"chat.default","messages":[{"role":"user"}],"n":1}'
)


def _malformed(draws: random.Random) -> bytes:
    """A good request with some bytes changed, moved, doubled or gone."""
    data = bytearray(_GOOD)
    for _ in range(draws.randint(1, 6)):
        at = draws.randrange(len(data))
        kind = draws.randrange(5)
        if kind == 0:
            data[at] = draws.randrange(256)
        elif kind == 1:
            del data[at : at + draws.randint(1, 20)]
        elif kind == 2:
            data[at:at] = data[at : at + draws.randint(1, 40)]
        elif kind == 3:
            data[at:at] = draws.choice([b"\r\n", b"\x00", b"\xff\xfe", b":", b"Transfer-Encoding: chunked\r\n", b"{["])
        else:
            data = data[: max(1, at)]
        if not data:
            break
    return bytes(data)


async def _ask(port: int, data: bytes) -> bytes:
    """Sends it and reads what comes first; an incomplete request is waited for by the gateway, not by us."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        async with asyncio.timeout(1):
            return await reader.read(65536)
    except (ConnectionError, TimeoutError):
        return b""
    finally:
        writer.close()


async def test_ten_thousand_malformed_requests_crash_nothing_and_leave_nothing_behind() -> None:
    draws = random.Random(5)
    statuses: set[int] = set()
    async with serving(MockEngine(max_num_seqs=1000), timeouts={"bodySeconds": 0.2, "headerSeconds": 0.2}) as gateway:
        for _ in range(REQUESTS // AT_ONCE):
            answers = await asyncio.gather(*[_ask(gateway.gateway.port, _malformed(draws)) for _ in range(AT_ONCE)])
            statuses.update(int(answer[9:12]) for answer in answers if answer)
        await until(lambda: gateway.gateway.connections == 0, timeout_seconds=10)
        assert gateway.gateway.public.in_flight == 0
        assert gateway.gateway.dispatcher.waiting == 0
        async with gateway.post() as response:
            assert response.status == 200
    assert 400 in statuses
    assert not {status for status in statuses if status >= 500}, statuses
