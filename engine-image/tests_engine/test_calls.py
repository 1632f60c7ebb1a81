"""From a checked body to sequences: what is refused before it costs anything, and what each sequence is given."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from modelfleet_engine.errors import RequestError
from modelfleet_engine.http import limits, openai
from modelfleet_engine.http.app import build_app
from modelfleet_engine.http.calls import chat_call, completion_call
from modelfleet_engine.http.choice import ChoiceDelta
from modelfleet_engine.http.headers import CallHeaders
from modelfleet_engine.http.openai import LONG_BODY_BYTES
from modelfleet_engine.http.responses import CompletionFormat, Usage
from modelfleet_engine.http.schema import ChatCompletionBody, CompletionBody
from tokenizers import processors

from tests_engine.serving_here import MAX_MODEL_LEN, MAX_OUTSTANDING, serving_here
from tests_engine.tiny_model import BOS, EOS_ID, byte_tokenizer, encode, write_tiny_model


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


async def test_a_body_that_does_not_come_is_given_up_and_holds_up_no_drain(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stalled() -> AsyncIterator[bytes]:
        yield b'{"model": '
        await asyncio.Event().wait()

    monkeypatch.setattr(openai, "BODY_SECONDS", 0.05)
    async with serving_here(directory) as (serving, _), TestClient(TestServer(build_app(serving))) as client:
        answer = await client.post("/v1/completions", data=stalled())
        error = (await answer.json())["error"]

        assert await serving.drain.wait_idle(timeout_seconds=5)
    assert (answer.status, error["code"]) == (408, "body_timeout")
    assert error["message"] == "The request body did not come within 0.05 s."


async def test_a_long_body_is_parsed_off_the_event_loop(directory: Path) -> None:
    gate = threading.Event()
    long = {"model": "tiny", "prompt": "a" * LONG_BODY_BYTES, "temperature": "wrong"}
    async with serving_here(directory) as (serving, _), TestClient(TestServer(build_app(serving))) as client:
        serving.tokenizer_pool.submit(gate.wait)
        refused = asyncio.create_task(client.post("/v1/completions", json=long))
        others = [await client.get("/health") for _ in range(20)]
        is_refused_at_once = refused.done()
        gate.set()
        error = (await (await refused).json())["error"]

    assert [answer.status for answer in others] == [200] * 20
    assert not is_refused_at_once
    assert (error["param"], error["code"]) == ("temperature", "invalid_value")


@pytest.mark.parametrize(
    ("change", "param"), [({"prompt_logprobs": 20}, "prompt_logprobs"), ({"logprobs": 20, "echo": True}, "logprobs")]
)
async def test_an_answer_of_too_many_prompt_scores_is_refused_with_the_numbers(
    directory: Path, change: dict[str, object], param: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = 2 * 2 * 10 * 21
    body = CompletionBody.model_validate({"model": "tiny", "prompt": ["a" * 10, "b" * 10], "n": 2, **change})
    async with serving_here(directory) as (serving, model):
        monkeypatch.setattr(limits, "MAX_PROMPT_SCORES", scores)
        await completion_call(serving, model, body, CallHeaders())
        monkeypatch.setattr(limits, "MAX_PROMPT_SCORES", scores - 1)
        with pytest.raises(RequestError, match=f"would hold {scores} log .* at most {scores - 1} are") as refusal:
            await completion_call(serving, model, body, CallHeaders())

    assert (refusal.value.status, refusal.value.param) == (400, param)


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


HEADERS = CallHeaders(deadline_seconds=99.0, cache_salt="tenant", prefix_hashes=("h1", "h2"))


async def test_what_headers_say_reaches_every_sequence(directory: Path) -> None:
    async with serving_here(directory) as (serving, model):
        body = CompletionBody(model="tiny", prompt="abc", n=2, priority=-3, cache_salt="own")
        call = await completion_call(serving, model, body, HEADERS)

    assert [
        (request.deadline_seconds, request.cache_salt, request.prefix_hashes, request.priority)
        for request in call.requests
    ] == [(99.0, "tenant\nown", ("h1", "h2"), -3)] * 2


@pytest.mark.parametrize("change", [{"prompt": ["abc", "abd"]}, {"truncate_prompt_tokens": 2}])
async def test_prefix_hashes_are_dropped_where_they_do_not_stand_for_the_prompt(
    directory: Path, change: dict[str, object]
) -> None:
    async with serving_here(directory) as (serving, model):
        body = CompletionBody.model_validate({"model": "tiny", "prompt": "abc", **change})
        call = await completion_call(serving, model, body, HEADERS)

    assert [request.prefix_hashes for request in call.requests] == [()] * len(call.requests)


async def test_the_choices_of_one_prompt_are_a_group_and_its_prompt_is_scored_once(directory: Path) -> None:
    async with serving_here(directory) as (serving, model):
        body = CompletionBody(model="tiny", prompt=["a", "a"], n=2, echo=True, logprobs=2, prompt_logprobs=1)
        call = await completion_call(serving, model, body, CallHeaders())
        single = await completion_call(serving, model, CompletionBody(model="tiny", prompt=["a", "b"]), CallHeaders())

    groups = [request.group_id for request in call.requests]
    assert groups[0] == groups[1] != groups[2] == groups[3]
    assert [request.prompt_logprobs for request in call.requests] == [2, None, 2, None]
    assert [request.sampling.logprobs for request in call.requests] == [2] * 4
    assert [request.group_id for request in single.requests] == ["", ""]


async def test_a_logit_bias_is_taken_by_token_id_and_checked_against_the_vocabulary(directory: Path) -> None:
    async with serving_here(directory) as (serving, model):
        body = CompletionBody(model="tiny", prompt="a", logit_bias={"7": 100, "3": -100, "5": 0})
        call = await completion_call(serving, model, body, CallHeaders())
        outside = CompletionBody(model="tiny", prompt="a", logit_bias={"259": 1})
        with pytest.raises(RequestError, match="logit_bias: token id 259 is outside") as refusal:
            await completion_call(serving, model, outside, CallHeaders())

    assert call.requests[0].sampling.logit_bias == ((3, -100.0), (7, 100.0))
    assert refusal.value.param == "logit_bias"


async def test_special_tokens_are_added_to_a_text_unless_unwanted(directory: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 256)])
    tokenizer.save(str(directory / "tokenizer.json"))
    messages = [{"role": "user", "content": "hi"}]
    async with serving_here(directory) as (serving, model):

        async def first_ids(**change: object) -> tuple[int, ...]:
            body = CompletionBody.model_validate({"model": "tiny", "prompt": "a", **change})
            return (await completion_call(serving, model, body, CallHeaders())).prompts[0].token_ids

        async def chat_ids(**change: object) -> tuple[int, ...]:
            body = ChatCompletionBody.model_validate({"model": "tiny", "messages": messages, **change})
            return (await chat_call(serving, model, body, CallHeaders())).prompts[0].token_ids

        completion = [await first_ids(), await first_ids(add_special_tokens=False)]
        chat = [(await chat_ids())[:2], (await chat_ids(add_special_tokens=True))[:2]]

    assert completion == [(256, *encode("a")), encode("a")]
    assert chat == [(256, encode("u")[0]), (256, 256)]


async def test_a_template_that_breaks_on_its_arguments_is_the_clients_error(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text("{{ 1 // divisor }}", encoding="utf-8")
    messages = [{"role": "user", "content": "hi"}]
    fields = {"model": "tiny", "messages": messages, "chat_template_kwargs": {"divisor": 0}}
    async with serving_here(directory) as (serving, model):
        with pytest.raises(RequestError, match="division or modulo by zero") as refusal:
            await chat_call(serving, model, ChatCompletionBody.model_validate(fields), CallHeaders())

    assert (refusal.value.status, refusal.value.code) == (400, "invalid_messages")
