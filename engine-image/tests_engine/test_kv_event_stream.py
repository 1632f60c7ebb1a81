"""`GET /kv-events`: a snapshot first, every change once and in order, bounded memory, an end with the drain."""

from __future__ import annotations

import asyncio
import http.client
from pathlib import Path

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given, settings
from hypothesis import strategies as st
from modelfleet_api.protocol import KvEvent
from modelfleet_engine.http import kv_events
from modelfleet_engine.http.app import build_app
from modelfleet_engine.kv_event_hub import MAX_BACKLOG_EVENTS, KvEventHub, KvSubscription
from modelfleet_engine.request import KvEvents

from tests_engine.server_process import fake_server
from tests_engine.serving_here import serving_here
from tests_engine.tiny_model import write_tiny_model


def _stored(*hashes: str) -> KvEvents:
    return KvEvents(stored=hashes)


async def _next(subscription: KvSubscription) -> KvEvent:
    async with asyncio.timeout(5):
        event = await subscription.next_event()
    assert event is not None
    return event


async def test_a_subscriber_sees_a_snapshot_and_then_every_change_once() -> None:
    hub = KvEventHub()
    hub.publish(_stored("a", "b"))
    with hub.subscribe() as subscription:
        first = await _next(subscription)
        hub.publish(KvEvents(stored=("c",), evicted=("a",)))
        second = await _next(subscription)

    assert first == KvEvent(sequence=1, snapshot=True, stored=("a", "b"))
    assert second == KvEvent(sequence=2, stored=("c",), evicted=("a",))
    assert hub.snapshot() == KvEvent(sequence=2, snapshot=True, stored=("b", "c"))


async def test_what_happens_between_subscribing_and_the_first_read_is_in_the_snapshot_only() -> None:
    hub = KvEventHub()
    with hub.subscribe() as subscription:
        hub.publish(_stored("a"))

        assert await _next(subscription) == KvEvent(sequence=1, snapshot=True, stored=("a",))
        hub.publish(_stored("b"))
        assert await _next(subscription) == KvEvent(sequence=2, stored=("b",))


async def test_a_slow_subscriber_loses_its_backlog_and_gets_a_snapshot_without_a_gap_after_it() -> None:
    hub = KvEventHub()
    with hub.subscribe() as slow, hub.subscribe() as quick:
        for subscription in (slow, quick):
            await _next(subscription)
        for number in range(MAX_BACKLOG_EVENTS + 1):
            hub.publish(_stored(str(number)))
            assert (await _next(quick)).sequence == number + 1
        event = await _next(slow)
        hub.publish(_stored("after"))
        following = await _next(slow)

    assert (event.snapshot, event.sequence, len(event.stored)) == (True, 257, 257)
    assert following == KvEvent(sequence=258, stored=("after",))


async def test_closing_ends_those_that_wait_and_those_that_come_later() -> None:
    hub = KvEventHub()
    with hub.subscribe() as subscription:
        await _next(subscription)
        waiting = asyncio.create_task(subscription.next_event())
        await asyncio.sleep(0)
        hub.close()

        assert await waiting is None
    with hub.subscribe() as late:
        assert await late.next_event() is None
    assert hub.subscribers == 0


_HASHES = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=4).map(tuple)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.tuples(_HASHES, _HASHES, st.booleans()), max_size=30))
async def test_a_mirror_built_from_the_stream_equals_the_engines(
    steps: list[tuple[tuple[str, ...], tuple[str, ...], bool]],
) -> None:
    hub, mirror, sequence = KvEventHub(), set[str](), 0
    with hub.subscribe() as subscription:
        for stored, evicted, is_read in steps:
            hub.publish(KvEvents(stored=stored, evicted=evicted))
            while is_read and sequence < hub.snapshot().sequence:
                event = await _next(subscription)
                assert event.snapshot or event.sequence == sequence + 1
                mirror = (set() if event.snapshot else mirror) | set(event.stored)
                mirror -= set(event.evicted)
                sequence = event.sequence
                if sequence == hub.snapshot().sequence:
                    assert mirror == set(hub.snapshot().stored)


async def _event(response: ClientResponse) -> KvEvent:
    async with asyncio.timeout(5):
        line = await response.content.readuntil(b"\n\n")
    return KvEvent.model_validate_json(line.removeprefix(b"data: "))


async def test_the_stream_begins_with_a_snapshot_beats_while_silent_and_ends_at_the_drain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_events, "HEARTBEAT_SECONDS", 0.02)
    async with (
        serving_here(write_tiny_model(tmp_path / "tiny")) as (serving, model),
        TestClient(TestServer(build_app(serving))) as client,
    ):
        hub = model.bridge.kv_events
        hub.publish(_stored("a"))
        async with client.get("/kv-events") as response:
            assert response.content_type == "text/event-stream"
            assert await _event(response) == KvEvent(sequence=1, snapshot=True, stored=("a",))
            assert await response.content.readuntil(b"\n\n") == b": heartbeat\n\n"
            assert serving.drain.in_flight == 0
            hub.publish(_stored("b"))
            line = b": heartbeat\n\n"
            while line == b": heartbeat\n\n":
                line = await response.content.readuntil(b"\n\n")
            assert line == b'data: {"version":1,"sequence":2,"snapshot":false,"stored":["b"],"evicted":[]}\n\n'
            serving.drain.is_draining = True
            hub.close()
            assert (await response.content.read()).replace(b": heartbeat\n\n", b"") == b""
        async with client.get("/kv-events") as refused:
            assert (refused.status, refused.headers["x-modelfleet-draining"]) == (503, "1")
        assert hub.subscribers == 0


async def test_before_the_model_is_loaded_there_are_no_events(tmp_path: Path) -> None:
    async with serving_here(write_tiny_model(tmp_path / "tiny")) as (serving, model):
        serving.model, serving.phase = None, "loading"
        async with TestClient(TestServer(build_app(serving))) as client, client.get("/kv-events") as response:
            assert (response.status, (await response.json())["error"]["code"]) == (503, "model_loading")
        serving.model = model


def test_a_gateways_hashes_come_back_as_their_kv_is_stored_and_evicted(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "tiny")
    # Eight blocks of 16 tokens: one prompt of 65 tokens and the next do not fit together.
    with fake_server(directory, environment={"FAKE_KV_BLOCKS": "8"}) as server:
        connection = server.connect()
        connection.request("GET", "/kv-events")
        response = connection.getresponse()

        def ask(prompt: str, hashes: str) -> KvEvent:
            body = {"model": "tiny", "prompt": prompt, "max_tokens": 2}
            assert server.post("/v1/completions", body, headers={"x-modelfleet-prefix": hashes}).status == 200
            return _read_event(response)

        events = [_read_event(response), ask("a" * 65, "a1,a2,a3,a4"), ask("b" * 65, "b1,b2,b3,b4")]
        server.terminate()
        assert response.read() == b""
        connection.close()
        assert server.wait() == 0

    assert events == [
        KvEvent(sequence=0, snapshot=True),
        KvEvent(sequence=1, stored=("a1", "a2", "a3", "a4")),
        # The end of the older prompt goes first: its beginning is worth more.
        KvEvent(sequence=2, stored=("b1", "b2", "b3", "b4"), evicted=("a4",)),
    ]
    assert [line["path"] for line in server.lines if line["event"] == "request"] == ["/v1/completions"] * 2


def _read_event(response: http.client.HTTPResponse) -> KvEvent:
    """The next event of a stream, heartbeats skipped."""
    line = response.readline()
    while not line.startswith(b"data: "):
        line = response.readline()
    assert response.readline() == b"\n"
    return KvEvent.model_validate_json(line.removeprefix(b"data: "))
