"""Further fields and headers of the API against a server process: stops, usage, deadlines, salts, the usage comment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from modelfleet_api.protocol import (
    HEADER_PREFIX,
    HEADER_REQUEST_TIMEOUT,
    HEADER_SALT,
    HEADER_USAGE,
    USAGE_COMMENT_PREFIX,
)

from tests_engine.server_process import Answer, ServerProcess, fake_server
from tests_engine.tiny_model import encode, write_tiny_model

LONG = {"model": "alphabet", "prompt": "a", "max_tokens": 2000}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    with fake_server(directory, "--served-model-name", "alphabet") as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client


def _completion(server: ServerProcess, headers: dict[str, str] | None = None, /, **body: object) -> Answer:
    fields = {"model": "alphabet", "prompt": "a", "max_tokens": 3, **body}
    return server.post("/v1/completions", fields, headers=headers)


def _events(answer: Answer) -> list[str]:
    return answer.text.strip().split("\n\n")


@pytest.mark.parametrize(
    ("body", "text", "stop_reason"),
    [
        ({"stop": "de"}, "bc", "de"),
        ({"stop": "de", "include_stop_str_in_output": True}, "bcde", "de"),
        ({"stop": ["e", "de"], "include_stop_str_in_output": True}, "bcde", "de"),
        ({"stop_token_ids": list(encode("d"))}, "bc", encode("d")[0]),
        ({"stop_token_ids": list(encode("d")), "include_stop_str_in_output": True}, "bcd", encode("d")[0]),
    ],
)
def test_a_choice_says_what_stopped_it(
    server: ServerProcess, body: dict[str, object], text: str, stop_reason: int | str
) -> None:
    (whole,) = _completion(server, None, max_tokens=9, **body).json()["choices"]
    events = _events(_completion(server, None, max_tokens=9, stream=True, **body))
    chunks = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events[:-1]]

    assert (whole["text"], whole["finish_reason"], whole["stop_reason"]) == (text, "stop", stop_reason)
    assert "".join(chunk["text"] for chunk in chunks) == text
    assert (chunks[-1]["finish_reason"], chunks[-1]["stop_reason"]) == ("stop", stop_reason)


def test_an_answer_that_reached_its_length_was_stopped_by_nothing(server: ServerProcess) -> None:
    (choice,) = _completion(server, stop="x", stop_token_ids=[1]).json()["choices"]

    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", None)


def test_cached_tokens_are_those_that_were_there_before_the_call(server: ServerProcess) -> None:
    prompt = list(encode("cached " * 20))

    def cached(**body: object) -> int:
        answer = _completion(server, None, prompt=prompt, max_tokens=2, **body).json()
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

    # 140 tokens: 8 whole blocks of 16; of its own choices a call finds nothing.
    assert [cached(n=3), cached(), cached(n=2)] == [0, 128, 128]


def test_salts_separate_caches_whether_they_come_in_the_header_or_in_the_body(server: ServerProcess) -> None:
    prompt = list(encode("salted " * 20))

    def cached(salt: str | None, **body: object) -> int:
        headers = {} if salt is None else {HEADER_SALT: salt}
        answer = _completion(server, headers, prompt=prompt, max_tokens=2, **body).json()
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert [cached("one"), cached("one"), cached("two"), cached(None)] == [0, 128, 0, 0]
    assert [cached("one", cache_salt="x"), cached("one", cache_salt="x"), cached(None, cache_salt="x")] == [0, 128, 0]


@pytest.mark.parametrize(
    ("header", "value"),
    [
        (HEADER_REQUEST_TIMEOUT, "0"),
        (HEADER_REQUEST_TIMEOUT, "-1"),
        (HEADER_REQUEST_TIMEOUT, "nan"),
        (HEADER_REQUEST_TIMEOUT, "inf"),
        (HEADER_REQUEST_TIMEOUT, "86401"),
        (HEADER_REQUEST_TIMEOUT, "soon"),
        (HEADER_REQUEST_TIMEOUT, ""),
        (HEADER_SALT, "a b"),
        (HEADER_SALT, "x" * 257),
        (HEADER_PREFIX, "abc,,def"),
        (HEADER_PREFIX, "a" * 65),
        (HEADER_PREFIX, "a/b"),
        (HEADER_PREFIX, ",".join(["a"] * 513)),
        (HEADER_USAGE, "yes"),
    ],
)
def test_a_bad_header_is_refused_by_its_name(server: ServerProcess, header: str, value: str) -> None:
    answer = _completion(server, {header: value})

    error = answer.json()["error"]
    assert (answer.status, error["param"], error["code"]) == (400, header, "invalid_header")
    assert error["message"].startswith(f"{header}: must be ")


def test_good_headers_are_taken(server: ServerProcess) -> None:
    headers = {HEADER_REQUEST_TIMEOUT: "30.5", HEADER_SALT: "t-1", HEADER_PREFIX: "0a1b, 2c3d", HEADER_USAGE: "0"}

    assert _completion(server, headers).json()["choices"][0]["text"] == "bcd"


def test_a_deadline_that_passes_before_the_first_byte_is_a_504(server: ServerProcess) -> None:
    answer = server.post("/v1/completions", LONG, headers={HEADER_REQUEST_TIMEOUT: "0.3"})

    error = answer.json()["error"]
    assert (answer.status, error["code"], error["type"]) == (504, "deadline_exceeded", "timeout_error")
    assert set(error) == {"message", "type", "param", "code"}


def test_a_client_of_openai_does_not_ask_again_after_a_passed_deadline(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match="deadline passed") as error:
        client.with_options(max_retries=2).completions.create(
            model="alphabet", prompt="a", max_tokens=2000, extra_headers={HEADER_REQUEST_TIMEOUT: "0.2"}
        )

    assert error.value.request.headers["x-stainless-retry-count"] == "0"


def test_a_deadline_that_passes_in_a_stream_is_its_last_event_and_is_billed(server: ServerProcess) -> None:
    headers = {HEADER_REQUEST_TIMEOUT: "1", HEADER_USAGE: "1"}
    answer = server.post("/v1/completions", {**LONG, "stream": True}, headers=headers)

    *chunks, error, comment = _events(answer)
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    texts = [json.loads(chunk.removeprefix("data: "))["choices"][0]["text"] for chunk in chunks]
    usage = json.loads(comment.removeprefix(USAGE_COMMENT_PREFIX))
    assert usage["completion_tokens"] == len("".join(texts)) > 0
    assert usage["prompt_tokens"] == 1


def test_the_usage_comment_is_the_last_line_of_a_stream_and_only_where_it_was_asked_for(server: ServerProcess) -> None:
    asked = _events(_completion(server, {HEADER_USAGE: "1"}, stream=True))
    unasked = _events(_completion(server, stream=True))
    whole = _completion(server, {HEADER_USAGE: "1"})

    assert asked[-2] == unasked[-1] == "data: [DONE]"
    assert json.loads(asked[-1].removeprefix(USAGE_COMMENT_PREFIX)) == {
        "prompt_tokens": 1,
        "completion_tokens": 3,
        "total_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert whole.json()["usage"]["completion_tokens"] == 3
    assert USAGE_COMMENT_PREFIX not in whole.text


def test_a_client_of_openai_does_not_see_the_usage_comment(client: openai.OpenAI) -> None:
    chunks = client.completions.create(
        model="alphabet", prompt="a", max_tokens=3, stream=True, extra_headers={HEADER_USAGE: "1"}
    )

    assert "".join(chunk.choices[0].text for chunk in chunks) == "bcd"


def test_usage_so_far_is_in_every_chunk_for_those_who_ask(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    messages: Any = [{"role": "user", "content": "hello"}]
    chunks = list(
        client.chat.completions.create(
            model="alphabet", messages=messages, max_tokens=3, stream=True, stream_options=options
        )
    )

    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert len(counts) == len(chunks)
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 3)
    assert chunks[-1].choices == []


def test_a_prompt_is_cut_to_its_last_tokens_where_that_is_wanted(server: ServerProcess) -> None:
    answer = _completion(server, prompt="xyzabc", truncate_prompt_tokens=2, echo=True).json()

    assert answer["choices"][0]["text"] == "bcdef"
    assert answer["usage"]["prompt_tokens"] == 2


def test_a_template_sees_the_arguments_of_the_request_but_not_in_place_of_its_own(server: ServerProcess) -> None:
    body = {"model": "alphabet", "messages": [{"role": "user", "content": "hi"}]}
    arguments = {"enable_thinking": False, "messages": [], "add_generation_prompt": False}

    plain = server.post("/tokenize", body).json()
    given = server.post("/tokenize", {**body, "chat_template_kwargs": arguments}).json()

    assert plain == given


def test_equal_choices_of_a_prompt_may_be_asked_for_as_best_of(server: ServerProcess) -> None:
    assert len(_completion(server, n=2, best_of=2).json()["choices"]) == 2


def test_null_is_absent_for_every_field(server: ServerProcess) -> None:
    nothing = dict.fromkeys(
        ("logprobs", "echo", "logit_bias", "best_of", "priority", "prompt_logprobs", "stop", "cache_salt", "suffix")
    )

    assert _completion(server, None, **nothing).json()["choices"][0]["text"] == "bcd"


def test_a_stream_that_the_engine_cuts_is_billed_too(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "alphabet")
    with fake_server(directory, environment={"FAKE_FAIL_AT_STEP": "9"}) as server:
        answer = server.post("/v1/completions", {**LONG, "stream": True}, headers={HEADER_USAGE: "1"})

    *chunks, error, comment = _events(answer)
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "engine_failed"
    texts = [json.loads(chunk.removeprefix("data: "))["choices"][0]["text"] for chunk in chunks]
    assert json.loads(comment.removeprefix(USAGE_COMMENT_PREFIX))["completion_tokens"] == len("".join(texts)) > 0
