"""More work than the queue holds, with deadlines and clients that go away: all are told, and nothing is left over."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import aiohttp

from tests_engine.server_process import fake_server
from tests_engine.tiny_model import write_tiny_model

REQUESTS = 200
FLAGS = ("--max-num-seqs", "4", "--max-num-batched-tokens", "64", "--max-queued-tokens", "1500")
SMALL = {"FAKE_STEP_SECONDS": "0.005", "FAKE_KV_BLOCKS": "64"}
TOLD = {"", "queue_full", "queued_tokens", "deadline_unreachable", "deadline_exceeded", "gone"}


async def _ask(session: aiohttp.ClientSession, url: str, chance: random.Random) -> str:
    """One request: the error's code, "" if it was answered, "gone" if the client did not wait for that."""
    body = {
        "model": "tiny",
        "prompt": "a" * chance.randint(1, 200),
        "max_tokens": chance.randint(1, 40),
        "n": chance.choice((1, 1, 3)),
    }
    headers = {"x-request-timeout": str(chance.uniform(0.05, 2))} if chance.random() < 0.3 else {}
    patience_seconds = chance.uniform(0.02, 0.5) if chance.random() < 0.3 else 60
    try:
        async with asyncio.timeout(patience_seconds):
            async with session.post(f"{url}/v1/completions", json=body, headers=headers) as response:
                answer = await response.json()
    except TimeoutError:
        return "gone"
    assert (response.status == 429) == ("Retry-After" in response.headers)
    return str(answer["error"]["code"]) if response.status != 200 else ""


async def _stampede(url: str) -> tuple[Counter[str], dict[str, object]]:
    chance = random.Random(7)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        told = Counter(await asyncio.gather(*(_ask(session, url, chance) for _ in range(REQUESTS))))
        load: dict[str, object] = {"running": 1}
        async with asyncio.timeout(30):
            while load["running"] or load["waiting"]:
                async with session.get(f"{url}/load") as response:
                    load = await response.json()
    return told, load


def test_every_request_of_a_stampede_is_told_and_nothing_is_left_of_it(tmp_path: Path) -> None:
    with fake_server(write_tiny_model(tmp_path / "tiny"), *FLAGS, environment=SMALL) as server:
        told, load = asyncio.run(_stampede(server.url))
        again = server.post("/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 2})

    assert sum(told.values()) == REQUESTS
    assert set(told) <= TOLD
    # Where nothing waits anything is taken, and 64 sequences are more than 1,500 tokens of these.
    assert told[""] > 0
    assert told["queued_tokens"] > 0
    assert {name: load[name] for name in ("waiting", "running", "queuedTokens", "kvBlocksUsed")} == {
        "waiting": 0,
        "running": 0,
        "queuedTokens": 0,
        "kvBlocksUsed": 0,
    }
    assert again.json()["choices"][0]["text"] == "bc"
