"""Bad requests: each gets an OpenAI-shaped 4xx that names the field; nothing is ignored."""

from __future__ import annotations

import json

import pytest
from modelfleet_engine.errors import RequestError
from modelfleet_engine.http.schema import ChatCompletionBody, CompletionBody, SamplingBody
from modelfleet_engine.http.validate import parse_body
from pydantic import ValidationError

CHAT: dict[str, object] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION: dict[str, object] = {"model": "m", "prompt": "hi"}


def _refusal(body_type: type[SamplingBody], body: object) -> RequestError:
    with pytest.raises(RequestError) as refusal:
        parse_body(json.dumps(body).encode(), body_type)
    assert refusal.value.status == 400
    return refusal.value


@pytest.mark.parametrize(
    ("change", "param", "code", "text"),
    [
        ({"messages": []}, "messages", "invalid_value", "at least 1 item"),
        ({"messages": CHAT["messages"] * 16_385}, "messages", "invalid_value", "at most 16384 items"),  # type: ignore[operator]
        ({"messages": None}, "messages", "missing_field", "Missing required field: messages."),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "invalid_value", "'assistant'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_field", "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]},
            "messages[0].tool_calls",
            "unsupported_field",
            "not supported",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "invalid_value",
            "should be 'text', given \"image_url\"",
        ),
        ({"temperature": 2.5}, "temperature", "invalid_value", "less than or equal to 2, given 2.5"),
        ({"temperature": "0"}, "temperature", "invalid_value", 'given "0"'),
        ({"top_p": 0}, "top_p", "invalid_value", "greater than 0"),
        ({"top_k": -2}, "top_k", "invalid_value", "greater than or equal to -1"),
        ({"n": 0}, "n", "invalid_value", "greater than or equal to 1"),
        ({"n": True}, "n", "invalid_value", "valid integer"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value", "greater than or equal to 1"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens", "invalid_value", "contradicts"),
        ({"stop": ["a", ""]}, "stop[1]", "invalid_value", "at least 1 character"),
        ({"stop": ["a"] * 17}, "stop", "invalid_value", "at most 16"),
        ({"seed": 2**63}, "seed", "invalid_value", ""),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value", "only allowed with"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unsupported_field", "stream_options.x"),
        ({"logprobs": 1}, "logprobs", "invalid_value", "valid boolean"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value", "only allowed with logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value", "less than or equal to 20"),
        ({"prompt_logprobs": 21}, "prompt_logprobs", "invalid_value", "less than or equal to 20"),
        ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs", "invalid_value", "not available with stream"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "invalid_value", "less than or equal to 100"),
        ({"logit_bias": {"five": 1}}, "logit_bias.five", "invalid_value", "String should match"),
        ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias", "invalid_value", "at most 300 items"),
        ({"priority": 0.5}, "priority", "invalid_value", "valid integer"),
        ({"n": 2, "best_of": 3}, "best_of", "invalid_value", "differs from n 2"),
        ({"cache_salt": ""}, "cache_salt", "invalid_value", "at least 1 character"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "invalid_value", "greater than or equal to 1"),
        ({"stop": "x" * 1025}, "stop", "invalid_value", "at most 1024 characters"),
        ({"echo": True}, "echo", "unsupported_field", ""),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_field", ""),
        ({"tool_choice": "required"}, "tool_choice", "unsupported_field", ""),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_field", ""),
        ({"prompt": "hi"}, "prompt", "unsupported_field", ""),
        ({"temprature": 1}, "temprature", "unsupported_field", "temprature is not supported"),
    ],
)
def test_a_bad_chat_request_is_refused_by_the_name_of_its_field(
    change: dict[str, object], param: str, code: str, text: str
) -> None:
    error = _refusal(ChatCompletionBody, {**CHAT, **change})

    assert (error.param, error.code) == (param, code)
    assert param in error.message
    assert text in error.message


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"echo": 0}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"suffix": "x"}, "suffix"),
        ({"max_completion_tokens": 5}, "max_completion_tokens"),
    ],
)
def test_a_bad_completion_request_is_refused_by_the_name_of_its_field(change: dict[str, object], param: str) -> None:
    error = _refusal(CompletionBody, {**COMPLETION, **change})

    assert (error.param or "").startswith(param.partition("[")[0])
    assert param.partition("[")[0] in error.message


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"model": NaN}'])
def test_a_body_that_is_no_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(RequestError, match="JSON") as refusal:
        parse_body(raw, ChatCompletionBody)

    assert (refusal.value.status, refusal.value.code) == (400, "invalid_json")


def test_nulls_and_neutral_values_equal_absence() -> None:
    neutral = {
        "temperature": None,
        "tools": [],
        "tool_choice": "none",
        "parallel_tool_calls": False,
        "response_format": {"type": "text"},
        "logprobs": False,
        "logit_bias": {},
        "modalities": ["text"],
        "audio": None,
        "echo": False,
        "bad_words": [],
        "documents": [],
        "length_penalty": 1.0,
        "include_reasoning": True,
        "return_tokens_as_token_ids": False,
        "stream_options": {"include_obfuscation": False, "include_usage": None},
        "user": "me",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
    }

    body = parse_body(json.dumps({**CHAT, **neutral}).encode(), ChatCompletionBody)

    assert body == parse_body(json.dumps(CHAT).encode(), ChatCompletionBody)


def test_an_answer_of_the_client_library_can_be_sent_back_as_it_is() -> None:
    message: dict[str, object] = {
        "role": "assistant",
        "content": "hi",
        "refusal": None,
        "annotations": [],
        "tool_calls": None,
    }

    body = parse_body(
        json.dumps({**CHAT, "messages": [message, {"role": "user", "content": "on"}]}).encode(),
        ChatCompletionBody,
    )

    assert body.messages[0].for_template() == {"role": "assistant", "content": "hi"}


def test_a_long_wrong_value_is_not_echoed_in_full() -> None:
    error = _refusal(ChatCompletionBody, {**CHAT, "temperature": "x" * 10_000})

    assert len(error.message) < 300


@pytest.mark.parametrize(
    ("body_type", "change"),
    [
        (ChatCompletionBody, {"messages": [{}] * 200_000}),
        (ChatCompletionBody, {"messages": [{"role": "user", "content": [{}] * 200_000}]}),
        (ChatCompletionBody, {f"field{index}": 1 for index in range(200_000)}),
        (ChatCompletionBody, {"messages": [{f"field{index}": 1 for index in range(200_000)}]}),
        (CompletionBody, {"prompt": [-1] * 200_000}),
        (CompletionBody, {"prompt": [[-1] * 200_000]}),
    ],
)
def test_a_request_that_is_wrong_everywhere_costs_no_more_than_one_mistake(
    body_type: type[SamplingBody], change: dict[str, object]
) -> None:
    base = CHAT if body_type is ChatCompletionBody else COMPLETION
    error = _refusal(body_type, {**base, **change})

    assert isinstance(error.__cause__, ValidationError)
    assert error.__cause__.error_count() <= 4


def test_an_object_of_too_many_fields_is_refused_with_the_limit() -> None:
    many = {f"field{index}": 1 for index in range(65)}

    top = _refusal(ChatCompletionBody, many)
    inner = _refusal(ChatCompletionBody, {**CHAT, "messages": [many]})

    assert (top.param, top.message) == (
        None,
        "The request body: an object has at most 64 fields, this one has 65.",
    )
    assert (inner.param, inner.code) == ("messages[0]", "invalid_value")


def test_a_deeply_nested_value_is_refused_by_its_type() -> None:
    nested: object = 1
    for _ in range(400):
        nested = [nested]

    error = _refusal(ChatCompletionBody, {**CHAT, "temperature": nested})

    assert error.message == "temperature: Input should be a valid number, given an array."


def test_long_names_are_cut_in_errors() -> None:
    field = _refusal(ChatCompletionBody, {**CHAT, "x" * 100_000: 1})
    model = _refusal(ChatCompletionBody, {**CHAT, "model": "m" * 257})

    assert field.message == "x" * 77 + "... is not supported by this engine."
    assert model.message == ("model: String should have at most 256 characters, given a string of 257 characters.")


def test_a_long_key_of_a_clients_own_object_is_cut_in_errors() -> None:
    error = _refusal(ChatCompletionBody, {**CHAT, "logit_bias": {"x" * 100_000: 1}})

    assert error.param == "logit_bias." + "x" * 77 + "..."
    assert len(error.message) < 400


def test_an_empty_or_odd_field_name_is_shown_quoted() -> None:
    top = _refusal(ChatCompletionBody, {**CHAT, "": 1})
    inner = _refusal(ChatCompletionBody, {**CHAT, "messages": [{"role": "user", "content": "x", "a b": 1}]})

    assert top.message == '"" is not supported by this engine.'
    assert inner.message == 'messages[0]."a b" is not supported by this engine.'
