"""The OpenAI endpoints of a real server process, asked by the real `openai` client."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from modelfleet_api.protocol import HEADER_PREFIX, Load
from modelfleet_engine.http.headers import MAX_PREFIX_HASHES
from openai.types.chat import ChatCompletionMessageParam

from tests_engine.server_process import FAKE, ServerProcess, fake_server, running
from tests_engine.tiny_model import encode, write_tiny_model

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    with fake_server(directory, "--served-model-name", "alphabet") as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client


def test_a_chat_answer_comes_whole(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="alphabet", messages=MESSAGES, max_tokens=5)

    assert answer.object == "chat.completion"
    assert answer.model == "alphabet"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == "abcde"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 24,
        "completion_tokens": 5,
        "total_tokens": 29,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_a_chat_answer_streams_token_by_token_with_usage_at_its_end(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="alphabet",
            messages=MESSAGES,
            max_completion_tokens=4,
            stream=True,
            stream_options={"include_usage": True},
        )
    )

    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(text or "" for text in texts) == "abcd"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert [chunk.usage is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4
    assert len({chunk.id for chunk in chunks}) == 1


def test_no_usage_chunk_comes_unasked(client: openai.OpenAI) -> None:
    chunks = list(client.completions.create(model="alphabet", prompt="a", max_tokens=3, stream=True))

    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "bcd"


def test_a_completion_takes_text_or_token_ids_one_or_many(client: openai.OpenAI) -> None:
    prompts: list[Any] = ["xyz", list(encode("xyz")), ["xyz", "b"], [list(encode("xyz")), list(encode("b"))]]

    answers = [client.completions.create(model="alphabet", prompt=prompt, max_tokens=2) for prompt in prompts]

    texts = [[choice.text for choice in answer.choices] for answer in answers]
    assert texts == [["ab"], ["ab"], ["ab", "cd"], ["ab", "cd"]]
    assert [choice.index for choice in answers[2].choices] == [0, 1]


def test_a_completion_without_a_limit_ends_after_openais_sixteen_tokens(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="alphabet", prompt="a")

    assert answer.choices[0].text == "bcdefghijklmnopq"


def test_several_choices_are_numbered_and_counted_together(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="alphabet", messages=MESSAGES, max_tokens=3, n=3)
    chunks = client.completions.create(model="alphabet", prompt="a", max_tokens=2, n=2, stream=True)

    assert [(choice.index, choice.message.content) for choice in answer.choices] == [
        (0, "abc"),
        (1, "abc"),
        (2, "abc"),
    ]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (24, 9)
    texts = {0: "", 1: ""}
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == {0: "bc", 1: "bc"}


def test_a_stop_string_ends_the_text_before_itself(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="alphabet", prompt="a", max_tokens=20, stop=["zz", "fgh"])
    streamed = list(client.completions.create(model="alphabet", prompt="a", max_tokens=20, stop="fgh", stream=True))

    assert (whole.choices[0].text, whole.choices[0].finish_reason) == ("bcde", "stop")
    assert "".join(chunk.choices[0].text for chunk in streamed) == "bcde"
    assert streamed[-1].choices[0].finish_reason == "stop"


def test_a_stop_token_ends_the_text_and_min_tokens_holds_it_off(client: openai.OpenAI) -> None:
    (stop_id,) = encode("e")

    def text(**extra: object) -> str:
        body = {"stop_token_ids": [stop_id], **extra}
        answer = client.completions.create(model="alphabet", prompt="a", max_tokens=9, extra_body=body)
        return f"{answer.choices[0].text} {answer.choices[0].finish_reason}"

    assert text() == "bcd stop"
    # "e" may not be drawn as the fourth token; the fake device then takes the next id, "f".
    assert text(min_tokens=6) == "bcdfghijk length"


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        # Complete with the third token, the last that may not stop: the next one counts.
        ("cd", "bcdefghijklmnopqrstuvwxyzab"),
        # Begun before, complete with the first token that may stop.
        ("de", "bc"),
        ("e", "bcd"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_counts_where_it_ends_after_min_tokens(
    client: openai.OpenAI, stop: str, text: str, stream: bool
) -> None:
    answer: Any = client.completions.create(
        model="alphabet", prompt="a", max_tokens=40, stop=stop, stream=stream, extra_body={"min_tokens": 3}
    )

    pieces = answer if stream else [answer]
    assert "".join(piece.choices[0].text for piece in pieces) == text


def test_harmless_and_neutral_fields_change_nothing(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="alphabet",
        messages=[{"role": "developer", "content": [{"type": "text", "text": "be"}]}, *MESSAGES],
        max_tokens=2,
        user="me",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        tools=[],
        tool_choice="none",
        response_format={"type": "text"},
        logprobs=False,
        logit_bias={},
        extra_body={"stop": None, "top_k": -1, "min_p": 0.1, "seed": 5, "best_of": 1},
    )

    assert answer.choices[0].message.content == "ab"


def test_the_model_is_listed_with_its_context_length(client: openai.OpenAI, server: ServerProcess) -> None:
    (card,) = client.models.list().data

    assert (card.id, card.model_extra) == (
        "alphabet",
        {"root": "alphabet", "max_model_len": 4096},
    )
    assert client.models.retrieve("alphabet").id == "alphabet"
    assert server.get("/v1/models/other").status == 404


def test_an_unknown_model_is_a_404_that_says_what_is_served(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refusal:
        client.completions.create(model="gpt-4", prompt="a")

    assert refusal.value.code == "model_not_found"
    assert refusal.value.param == "model"
    assert "`gpt-4` does not exist here; served: alphabet" in str(refusal.value)


def test_a_prompt_that_is_too_long_is_refused_with_the_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.completions.create(model="alphabet", prompt="a" * 4090, max_tokens=10)

    assert refusal.value.code == "context_length_exceeded"
    assert "maximum context length is 4096 tokens" in str(refusal.value)
    assert "4090 tokens in prompt and 10 for the answer" in str(refusal.value)


def test_a_prompt_that_just_fits_is_served(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="alphabet", prompt="a" * 4094, max_tokens=2)

    assert answer.choices[0].text == "bc"


def test_eight_streams_share_each_forward_pass(tmp_path: Path) -> None:
    async def stream(client: openai.AsyncOpenAI, prompt: str, max_tokens: int) -> str:
        chunks = await client.completions.create(model="tiny", prompt=prompt, max_tokens=max_tokens, stream=True)
        return "".join([chunk.choices[0].text async for chunk in chunks])

    async def all_streams(process: ServerProcess) -> list[str]:
        async with process.async_client() as client:
            jobs = [stream(client, "a" * (index + 1), 100 + index) for index in range(8)]
            return await asyncio.gather(*jobs)

    # Steps of 10 ms: the client needs a few of them to begin all eight.
    with fake_server(write_tiny_model(tmp_path / "tiny"), environment={"FAKE_STEP_SECONDS": "0.01"}) as process:
        texts = asyncio.run(all_streams(process))
        steps = Load.model_validate(process.get("/load").json()).counters.steps

    assert [len(text) for text in texts] == list(range(100, 108))
    assert steps <= 1.2 * 107


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_goes_away_frees_its_place(server: ServerProcess, is_stream: bool) -> None:
    body = {"model": "alphabet", "prompt": "a", "max_tokens": 4000, "stream": is_stream}
    with contextlib.closing(server.connect()) as connection:
        connection.request("POST", "/v1/completions", body=json.dumps(body))
        while not (load := Load.model_validate(server.get("/load").json())).running:
            pass

    begun = load.counters.steps
    while load.running or load.kv_blocks_used:
        load = Load.model_validate(server.get("/load").json())
        assert load.counters.steps - begun < 500
    assert [line["status"] for line in server.lines if line["event"] == "request"][-1] == 499


def test_the_request_id_of_the_client_comes_back_and_is_logged(server: ServerProcess) -> None:
    body = {"model": "alphabet", "prompt": "a", "max_tokens": 3}
    given = server.post("/v1/completions", body, headers={"x-request-id": "mine-1"})
    streamed = server.post("/v1/completions", {**body, "stream": True}, headers={"x-request-id": "mine-2"})
    made_up = server.post("/v1/completions", body, headers={"x-request-id": "x" * 300})

    assert given.headers["x-request-id"] == "mine-1"
    assert streamed.headers["x-request-id"] == "mine-2"
    assert len(made_up.headers["x-request-id"]) == 32
    (line,) = [line for line in server.lines if line.get("request_id") == "mine-1"]
    assert line["status"] == 200
    assert (line["prompt_tokens"], line["completion_tokens"]) == (1, 3)


def test_probes_and_reports_answer(server: ServerProcess) -> None:
    assert server.get("/health").json() == {"status": "ok"}
    assert server.get("/ready").json() == {"ready": True, "phase": "ready"}
    load = Load.model_validate(server.get("/load").json())
    assert (load.model, load.ready, load.draining, load.block_tokens) == ("alphabet", True, False, 16)
    assert list(load.start_phases) == ["imports", "tokenizer", "import_torch", "weights", "profile"]
    assert load.kv_blocks_total == 1024


@pytest.mark.parametrize(
    ("method_and_path", "status"),
    [("GET /v1/chat/completions", 405), ("GET /v2/nothing", 404), ("GET /v1/models/", 404)],
)
def test_a_wrong_route_is_an_openai_shaped_error(server: ServerProcess, method_and_path: str, status: int) -> None:
    answer = server.get(method_and_path.removeprefix("GET "))

    assert answer.status == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_wrong_method_is_answered_with_the_right_one(server: ServerProcess) -> None:
    assert server.get("/v1/completions").headers["allow"] == "POST"
    assert server.post("/v1/models", {}).headers["allow"] == "GET,HEAD"


def test_a_body_that_is_too_large_is_refused_unread(server: ServerProcess) -> None:
    answer = server.post("/v1/completions", b"x" * (4 * 1024 * 1024 + 1))

    assert answer.status == 413
    assert "larger than 4194304 bytes" in answer.json()["error"]["message"]


def test_the_longest_list_of_prefix_hashes_reaches_the_engine_and_a_longer_one_is_refused(
    server: ServerProcess,
) -> None:
    body = {"model": "alphabet", "prompt": "z" * 64, "max_tokens": 1}
    hashes = [f"{index:064}" for index in range(MAX_PREFIX_HASHES)]

    served = server.post("/v1/completions", body, headers={HEADER_PREFIX: ", ".join(hashes)})
    refused = server.post("/v1/completions", body, headers={HEADER_PREFIX: ", ".join([*hashes, "0"])})

    assert (served.status, refused.status) == (200, 400)
    assert served.json()["choices"][0]["text"] == "a"


def test_a_refusal_of_the_template_is_the_clients_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="as you wish") as refusal:
        client.chat.completions.create(model="alphabet", messages=[{"role": "user", "content": "refuse me"}])

    assert refusal.value.param == "messages"


def test_token_ids_outside_the_vocabulary_are_refused(server: ServerProcess) -> None:
    prompt = server.post("/v1/completions", {"model": "alphabet", "prompt": [1, 259]})
    stop = server.post("/v1/completions", {"model": "alphabet", "prompt": "a", "stop_token_ids": [300]})

    assert (prompt.status, prompt.json()["error"]["param"]) == (400, "prompt")
    assert (stop.status, stop.json()["error"]["param"]) == (400, "stop_token_ids")
    assert "token id 259 is outside the model's vocabulary of 259" in prompt.text


def test_min_tokens_above_max_tokens_is_refused(server: ServerProcess) -> None:
    answer = server.post("/v1/completions", {"model": "alphabet", "prompt": "a", "max_tokens": 3, "min_tokens": 4})

    assert (answer.status, answer.json()["error"]["param"]) == (400, "min_tokens")


def test_a_full_queue_is_a_429_with_retry_after(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "tiny")
    body = {"model": "tiny", "prompt": "a", "max_tokens": 1000}
    with fake_server(directory, "--max-num-seqs", "1", environment={"FAKE_STEP_SECONDS": "0.02"}) as server:
        with contextlib.closing(server.connect()) as connection:
            connection.request("POST", "/v1/completions", body=json.dumps({**body, "n": 65, "stream": True}))
            connection.getresponse().read(1)
            load = Load.model_validate(server.get("/load").json())
            refused = server.post("/v1/completions", body)
        too_many = server.post("/v1/completions", {**body, "n": 66})

    assert (load.running, load.waiting) == (1, 64)
    assert (refused.status, refused.json()["error"]["code"]) == (429, "queue_full")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert int(refused.headers["retry-after"]) >= 1
    assert (too_many.status, too_many.json()["error"]["param"]) == (400, "n")


def test_a_configuration_file_serves_under_the_served_name_and_the_canonical_id(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "tiny")
    config = tmp_path / "engine.json"
    names = {"servedModelName": "org/tiny", "canonicalId": "tiny.default"}
    config.write_text(json.dumps({"modelPath": str(directory), "port": 0, **names}), encoding="utf-8")
    with running(FAKE, ("--config", str(config))) as server:
        server.event("ready")
        with server.client() as client:
            listed = [card.id for card in client.models.list().data]
            answers = [
                client.completions.create(model=name, prompt="a", max_tokens=1) for name in ("org/tiny", "tiny.default")
            ]
            retrieved = [client.models.retrieve(name).id for name in ("org/tiny", "tiny.default")]

    assert listed == ["org/tiny"]
    assert [answer.model for answer in answers] == ["org/tiny", "tiny.default"]
    assert retrieved == ["org/tiny", "tiny.default"]
