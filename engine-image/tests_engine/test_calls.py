"""From a checked body to sequences: what is refused before it costs anything, and what each sequence is given."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from modelfleet_engine.errors import RequestError
from modelfleet_engine.http.app import build_app
from modelfleet_engine.http.calls import chat_call, completion_call
from modelfleet_engine.http.choice import ChoiceDelta
from modelfleet_engine.http.headers import CallHeaders
from modelfleet_engine.http.responses import CompletionFormat, Usage
from modelfleet_engine.http.schema import ChatCompletionBody, CompletionBody

from tests_engine.serving_here import MAX_MODEL_LEN, MAX_OUTSTANDING, serving_here
from tests_engine.tiny_model import EOS_ID, write_tiny_model


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny")


async def test_calls_in_preparation_count_against_the_queue(directory: Path) -> None:
    gate = threading.Event()
    async with serving_here(directory) as (serving, model):
        serving.tokenizer_pool.submit(gate.wait)
        body = CompletionBody(model="tiny", prompt="a")
        begun = [
            asyncio.create_task(completion_call(serving, model, body, CallHeaders())) for _ in range(MAX_OUTSTANDING)
        ]
        await asyncio.sleep(0)

        with pytest.raises(RequestError) as refusal:
            await completion_call(serving, model, body, CallHeaders())

        gate.set()
        await asyncio.gather(*begun)
        assert (refusal.value.status, refusal.value.code) == (429, "queue_full")
        assert len((await completion_call(serving, model, body, CallHeaders())).requests) == 1


async def test_text_that_no_tokens_could_hold_is_refused_before_it_is_encoded(directory: Path) -> None:
    # "<|endoftext|>" is the longest token.
    limit = MAX_MODEL_LEN * len("<|endoftext|>")
    text = "a" * (limit + 1)
    async with serving_here(directory) as (serving, model):
        serving.tokenizer_pool.shutdown()
        messages = [{"role": "user", "content": text}]
        chat_body = ChatCompletionBody.model_validate({"model": "tiny", "messages": messages})
        with pytest.raises(RequestError) as plain:
            await completion_call(serving, model, CompletionBody(model="tiny", prompt=text), CallHeaders())
        with pytest.raises(RequestError) as chat:
            await chat_call(serving, model, chat_body, CallHeaders())

    for refusal, param in ((plain, "prompt"), (chat, "messages")):
        assert (refusal.value.param, refusal.value.code) == (param, "context_length_exceeded")
        assert f"at most {limit} characters, but the request has {limit + 1}" in refusal.value.message


async def test_text_whose_tokens_the_model_does_not_have_is_refused(directory: Path) -> None:
    async with serving_here(directory, vocab_size=258) as (serving, model):
        with pytest.raises(RequestError, match="token id 258 is outside the model's vocabulary of 258") as refusal:
            await completion_call(serving, model, CompletionBody(model="tiny", prompt="a<|endoftext|>"), CallHeaders())

    assert (refusal.value.status, refusal.value.param) == (400, "prompt")


async def test_an_end_token_the_model_cannot_draw_stops_nothing(directory: Path) -> None:
    async with serving_here(directory, vocab_size=258) as (serving, model):
        call = await completion_call(
            serving, model, CompletionBody(model="tiny", prompt="a", min_tokens=2), CallHeaders()
        )

    assert model.tokenizer.eos_token_ids == {257, 258}
    assert call.requests[0].stop_token_ids == {EOS_ID}


async def test_equal_prompts_of_one_call_get_different_seeds_and_a_given_seed_is_kept(directory: Path) -> None:
    async with serving_here(directory) as (serving, model):
        free = await completion_call(
            serving, model, CompletionBody(model="tiny", prompt=["a", "a"], n=2), CallHeaders()
        )
        fixed = await completion_call(
            serving, model, CompletionBody(model="tiny", prompt=["a", "a"], seed=7), CallHeaders()
        )

    keys = [(request.sampling.seed, request.sampling.choice_index) for request in free.requests]
    assert len({seed for seed, _ in keys}) == 2
    assert [index for _, index in keys] == [0, 1, 0, 1]
    assert [request.sampling.seed for request in fixed.requests] == [7, 7]


async def test_a_body_that_is_not_in_its_encoding_is_the_clients_error(directory: Path) -> None:
    async with serving_here(directory) as (serving, _), TestClient(TestServer(build_app(serving))) as client:
        answer = await client.post("/v1/completions", data=b"not gzip", headers={"Content-Encoding": "gzip"})
        error = (await answer.json())["error"]

    assert (answer.status, error["code"]) == (400, "invalid_body")
    assert "Can not decode content-encoding: gzip" in error["message"]


async def test_a_bug_in_a_begun_stream_ends_it_with_one_error_event(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_chunk = CompletionFormat.chunk

    def breaking_chunk(self: CompletionFormat, delta: ChoiceDelta, usage: Usage) -> bytes:
        if delta.text == "d":
            raise ZeroDivisionError("a bug")
        return real_chunk(self, delta, usage)

    monkeypatch.setattr(CompletionFormat, "chunk", breaking_chunk)
    async with serving_here(directory) as (serving, _), TestClient(TestServer(build_app(serving))) as client:
        answer = await client.post("/v1/completions", json={"model": "tiny", "prompt": "a", "stream": True})
        raw = await answer.read()
        cut = serving.counts.cut

    events = [json.loads(event.removeprefix(b"data: ")) for event in raw.strip().split(b"\n\n")]
    assert "".join(event["choices"][0]["text"] for event in events[:-1]) == "bc"
    assert events[-1]["error"]["code"] == "internal_error"
    assert cut == 1
