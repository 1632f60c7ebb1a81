"""Log probabilities, echo and token ids in answers, as the real `openai` client reads them from a server process.

The fake device says of the token at rank r that its probability is 2**-r; after "a" comes "b", then "c", and so on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests_engine.server_process import ServerProcess, fake_server
from tests_engine.tiny_model import BOS, encode, write_tiny_model

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]
FIRST, SECOND = math.log(0.5), 2 * math.log(0.5)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    with fake_server(directory, "--served-model-name", "alphabet") as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client


def test_a_chat_choice_has_each_token_with_its_bytes_and_alternatives(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="alphabet", messages=HELLO, max_tokens=2, logprobs=True, top_logprobs=2
    )

    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.model_dump() == {
        "content": [
            {
                "token": token,
                "logprob": FIRST,
                "bytes": list(token.encode()),
                "top_logprobs": [
                    {"token": token, "logprob": FIRST, "bytes": list(token.encode())},
                    {"token": other, "logprob": SECOND, "bytes": list(other.encode())},
                ],
            }
            for token, other in (("a", "b"), ("b", "c"))
        ],
        "refusal": None,
    }


def test_a_chat_stream_brings_the_same_log_probabilities_in_pieces(client: openai.OpenAI) -> None:
    arguments: dict[str, Any] = {"model": "alphabet", "messages": HELLO, "max_tokens": 5, "n": 2}
    whole = client.chat.completions.create(**arguments, logprobs=True, top_logprobs=1)
    chunks = client.chat.completions.create(**arguments, logprobs=True, top_logprobs=1, stream=True)

    pieces: dict[int, list[object]] = {0: [], 1: []}
    for chunk in chunks:
        choice = chunk.choices[0]
        pieces[choice.index] += (choice.logprobs.content or []) if choice.logprobs else []
    for choice in whole.choices:
        assert choice.logprobs is not None
        assert pieces[choice.index] == choice.logprobs.content


def test_without_the_wish_there_are_no_log_probabilities(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(model="alphabet", messages=HELLO, max_tokens=1)
    bare = client.chat.completions.create(model="alphabet", messages=HELLO, max_tokens=1, logprobs=True)

    assert plain.choices[0].logprobs is None
    assert bare.choices[0].logprobs is not None
    assert [entry.top_logprobs for entry in bare.choices[0].logprobs.content or []] == [[]]


def test_a_completion_has_columns_that_count_the_offsets_of_its_text(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="alphabet", prompt="xa", max_tokens=3, logprobs=2)

    assert answer.choices[0].text == "bcd"
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.model_dump() == {
        "tokens": ["b", "c", "d"],
        "token_logprobs": [FIRST, FIRST, FIRST],
        "top_logprobs": [{"b": FIRST, "c": SECOND}, {"c": FIRST, "d": SECOND}, {"d": FIRST, "e": SECOND}],
        "text_offset": [0, 1, 2],
    }


def test_an_echo_is_scored_like_the_answer(client: openai.OpenAI) -> None:
    # "d" after "b" is the second likeliest token.
    answer = client.completions.create(model="alphabet", prompt="abd", max_tokens=1, logprobs=1, echo=True)

    assert answer.choices[0].text == "abde"
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.model_dump() == {
        "tokens": ["a", "b", "d", "e"],
        "token_logprobs": [None, FIRST, SECOND, FIRST],
        "top_logprobs": [None, {"b": FIRST}, {"c": FIRST, "d": SECOND}, {"e": FIRST}],
        "text_offset": [0, 1, 2, 3],
    }


def test_a_streamed_echo_comes_first_and_is_scored_for_every_choice(client: openai.OpenAI) -> None:
    chunks = client.completions.create(
        model="alphabet", prompt=["abd", "z"], n=2, max_tokens=2, logprobs=0, echo=True, stream=True
    )

    texts = [""] * 4
    scores: list[list[float | None]] = [[] for _ in texts]
    offsets: list[list[int]] = [[] for _ in texts]
    for chunk in chunks:
        choice = chunk.choices[0]
        texts[choice.index] += choice.text
        assert choice.logprobs is not None
        assert choice.logprobs.top_logprobs is None
        scores[choice.index] += choice.logprobs.token_logprobs or []
        offsets[choice.index] += choice.logprobs.text_offset or []
    assert texts == ["abdef", "abdef", "zab", "zab"]
    assert scores == [[None, FIRST, SECOND, FIRST, FIRST]] * 2 + [[None, FIRST, FIRST]] * 2
    assert offsets == [[0, 1, 2, 3, 4]] * 2 + [[0, 1, 2]] * 2


def test_an_echo_without_an_answer_scores_the_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="alphabet", prompt="abd", max_tokens=0, logprobs=0, echo=True)

    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason) == ("abd", "length")
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs == [None, FIRST, SECOND]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 0)


def test_an_echo_of_token_ids_is_their_text(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="alphabet", prompt=list(encode("ab€")), max_tokens=1, echo=True)

    assert answer.choices[0].text == "ab€a"


def test_a_part_of_a_character_is_shown_by_its_bytes_and_its_offset_is_the_characters(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="alphabet", prompt="a€b", max_tokens=1, logprobs=0, echo=True)

    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["a", "bytes:\\xe2", "bytes:\\x82", "bytes:\\xac", "b", "c"]
    assert logprobs.text_offset == [0, 1, 1, 1, 2, 3]


def test_prompt_log_probabilities_stand_where_vllm_puts_them(client: openai.OpenAI) -> None:
    a, b, c, d = encode("abcd")
    expected = [
        None,
        {str(b): {"logprob": FIRST, "rank": 1, "decoded_token": "b"}},
        {
            str(d): {"logprob": SECOND, "rank": 2, "decoded_token": "d"},
            str(c): {"logprob": FIRST, "rank": 1, "decoded_token": "c"},
        },
    ]
    body = {"prompt_logprobs": 1}

    completion = client.completions.create(model="alphabet", prompt=[a, b, d], n=2, max_tokens=1, extra_body=body)
    chat = client.chat.completions.create(model="alphabet", messages=HELLO, max_tokens=1, extra_body=body)

    assert [choice.to_dict()["prompt_logprobs"] for choice in completion.choices] == [expected, expected]
    positions = chat.to_dict()["prompt_logprobs"]
    assert isinstance(positions, list)
    assert len(positions) == 24
    assert positions[0] is None


def test_token_ids_come_with_the_text_where_vllm_puts_them(client: openai.OpenAI) -> None:
    body = {"return_token_ids": True}
    chat: Any = client.chat.completions.create(
        model="alphabet", messages=HELLO, max_tokens=3, extra_body=body
    ).to_dict()
    completion: Any = client.completions.create(model="alphabet", prompt="a", max_tokens=3, extra_body=body).to_dict()
    chunks = list(client.completions.create(model="alphabet", prompt="a", max_tokens=3, stream=True, extra_body=body))

    (choice,) = completion["choices"]
    assert chat["choices"][0]["token_ids"] == list(encode("abc"))
    assert len(chat["prompt_token_ids"]) == 24
    assert (choice["token_ids"], choice["prompt_token_ids"]) == (list(encode("bcd")), list(encode("a")))
    streamed: list[Any] = [chunk.choices[0].to_dict() for chunk in chunks]
    assert [token_id for piece in streamed for token_id in piece["token_ids"]] == list(encode("bcd"))
    assert [piece.get("prompt_token_ids") for piece in streamed] == [list(encode("a")), *[None] * (len(streamed) - 1)]


def test_the_token_that_stopped_is_in_the_columns_but_not_in_the_text(client: openai.OpenAI) -> None:
    (stop_id,) = encode("d")
    answer = client.completions.create(
        model="alphabet", prompt="a", logprobs=0, extra_body={"stop_token_ids": [stop_id], "return_token_ids": True}
    )

    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason) == ("bc", "stop")
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["b", "c", "d"]
    assert choice.to_dict()["token_ids"] == list(encode("bcd"))
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_the_tokens_of_a_stop_string_are_in_the_columns_but_none_after_it(client: openai.OpenAI) -> None:
    arguments: dict[str, Any] = {"model": "alphabet", "prompt": "a", "max_tokens": 20, "stop": "de", "logprobs": 0}
    whole = client.completions.create(**arguments)
    streamed = list(client.completions.create(**arguments, stream=True))

    assert whole.choices[0].text == "bc"
    assert whole.choices[0].logprobs is not None
    assert whole.choices[0].logprobs.tokens == ["b", "c", "d", "e"]
    tokens = [
        token for chunk in streamed if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.tokens or []
    ]
    assert tokens == ["b", "c", "d", "e"]


def test_special_tokens_are_shown_by_name_and_take_no_room_in_the_text(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="alphabet", prompt=[256, *encode("a")], max_tokens=1, logprobs=0, echo=True
    )
    shown = client.completions.create(
        model="alphabet", prompt=[256, *encode("a")], max_tokens=1, logprobs=0, echo=True,
        extra_body={"skip_special_tokens": False},
    )  # fmt: skip

    assert answer.choices[0].text == "ab"
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.tokens == [BOS, "a", "b"]
    assert answer.choices[0].logprobs.text_offset == [0, 0, 1]
    assert shown.choices[0].text == BOS + "ab"
    assert shown.choices[0].logprobs is not None
    assert shown.choices[0].logprobs.text_offset == [0, len(BOS), len(BOS) + 1]
