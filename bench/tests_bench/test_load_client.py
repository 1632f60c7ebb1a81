"""The load generator over real HTTP: what it sends, what it times, and which answers it counts as failures."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from bench.load_client import run_job
from bench.load_job import Chat, LoadJob

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}


def _frames(
    *, texts: tuple[str, ...] = ("a", "b"), finish: bool = True, usage: Any = USAGE, done: bool = True
) -> bytes:
    """A stream that suits both endpoints: each choice carries its text in both shapes."""
    events: list[object] = [{"choices": [{"text": text, "delta": {"content": text}}]} for text in texts]
    if finish:
        events.append({"choices": [{"text": "", "delta": {}, "finish_reason": "length"}]})
    events.append({"choices": [], "usage": usage})
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return "".join([*lines, *(["data: [DONE]\n\n"] if done else [])]).encode()


@dataclass
class Peer:
    """A server that answers every request with the same bytes and remembers what it was asked."""

    body: bytes
    status: int = 200
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    url: str = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append((request.path, await request.json()))
        return web.Response(body=self.body, status=self.status, content_type="text/event-stream")


@asynccontextmanager
async def running(peer: Peer) -> AsyncIterator[Peer]:
    """Serves on a free port of the loopback."""
    app = web.Application()
    app.router.add_post("/v1/{kind:.*}", peer.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    peer.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield peer
    finally:
        await runner.cleanup()


def _job(peer: Peer, **fields: Any) -> LoadJob:
    return LoadJob(base_url=peer.url, model="demo", concurrency=2, output_tokens=2, **fields)


async def test_each_prompt_is_asked_once_with_its_exact_length() -> None:
    async with running(Peer(_frames())) as peer:
        records = await run_job(_job(peer, prompts=((1, 2, 3), (4, 5, 6), (7, 8, 9))))
    assert sorted(body["prompt"] for _, body in peer.asked) == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    path, body = peer.asked[0]
    assert path == "/v1/completions"
    assert body == {
        "model": "demo",
        "max_tokens": 2,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "prompt": body["prompt"],
    }
    assert [record.failure for record in records] == [None] * 3
    first = records[0]
    assert (first.prompt_tokens, first.cached_tokens, first.completion_tokens) == (3, 1, 2)
    assert len(first.arrivals_seconds) == 2
    assert first.sent_seconds <= first.arrivals_seconds[0] <= first.arrivals_seconds[1] <= first.finished_seconds


async def test_a_chat_carries_its_whole_history() -> None:
    async with running(Peer(_frames())) as peer:
        records = await run_job(_job(peer, chats=(Chat(system="s", user_messages=("one", "two")),)))
    assert [record.failure for record in records] == [None, None]
    assert [path for path, _ in peer.asked] == ["/v1/chat/completions"] * 2
    assert peer.asked[1][1]["messages"] == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "ab"},
        {"role": "user", "content": "two"},
    ]


@pytest.mark.parametrize(
    ("peer", "failure"),
    [
        (Peer(b"no", status=503), "HTTP 503: no"),
        (Peer(_frames(usage={"completion_tokens": 1})), "1 tokens, 2 were asked for"),
        (Peer(_frames(usage=None)), "0 tokens, 2 were asked for"),
        (Peer(_frames(finish=False)), "no finish reason"),
        (Peer(_frames(texts=())), "0 chunks with text for 2 tokens"),
        (Peer(_frames(texts=("a", "b", "c"))), "3 chunks with text for 2 tokens"),
        (Peer(_frames(done=False)), "the stream ended without [DONE]"),
        (Peer(b'data: {"error": {"message": "cut"}}\n\n'), "{'message': 'cut'}"),
    ],
)
async def test_an_answer_that_is_not_what_was_asked_for_is_a_failure(peer: Peer, failure: str) -> None:
    async with running(peer):
        records = await run_job(_job(peer, prompts=((1, 2, 3),)))
    assert [record.failure for record in records] == [f"AnswerError: {failure}"]


async def test_a_server_that_is_gone_is_a_failure_of_every_request() -> None:
    async with running(Peer(b"")) as peer:
        job = _job(peer, prompts=((1,), (2,)))
    records = await run_job(job)
    assert [record.failure is not None and "ClientConnectorError" in record.failure for record in records] == [True] * 2


async def test_a_chat_ends_with_its_first_failure() -> None:
    async with running(Peer(b"no", status=500)) as peer:
        records = await run_job(_job(peer, chats=(Chat(system="s", user_messages=("one", "two")),)))
    assert [record.failure for record in records] == ["AnswerError: HTTP 500: no"]
