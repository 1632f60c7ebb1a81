"""The text of a prompt and the hashes of its blocks."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelfleet_gateway.prefix_text import BLOCK_CHARACTERS, MAX_BLOCKS, prompt_text, text_blocks

EXPECTED_BLOCKS = ("b0d7d01ec9226f48", "5315bdcb78b48980")

JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def chat(*messages: object, **fields: object) -> dict[str, Any]:
    return {"messages": list(messages), **fields}


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


def test_a_chat_is_its_tools_then_its_messages_with_their_roles() -> None:
    tools = [{"type": "function", "function": {"name": "weather"}}]
    body = chat({"role": "system", "content": "Be brief."}, user("Hello"), tools=tools)
    assert prompt_text(body) == (
        '[{"type":"function","function":{"name":"weather"}}]\x1esystem\x1fBe brief.\x1euser\x1fHello'
    )


def test_the_next_turn_of_a_chat_begins_with_all_of_the_one_before() -> None:
    first = chat(user("Hello"))
    second = chat(user("Hello"), {"role": "assistant", "content": "Hi"}, user("And now?"))
    assert prompt_text(second).startswith(prompt_text(first))


def test_parts_count_with_their_text_and_images_with_their_url() -> None:
    content = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "https://example.test/cat.png"}},
    ]
    assert prompt_text(chat(user(content))) == "user\x1fWhat is this?\x1dhttps://example.test/cat.png"


def test_an_image_within_the_body_is_a_digest_and_not_megabytes_of_text() -> None:
    def text_of(image: str) -> str:
        return prompt_text(chat(user([{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}])))

    assert len(text_of("A" * 1_000_000)) < 40
    assert text_of("A" * 1_000_000) == text_of("A" * 1_000_000)
    assert text_of("A" * 1_000_000) != text_of("A" * 999_999 + "B")


def test_calls_of_tools_are_part_of_the_text() -> None:
    calls = [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]
    body = chat(
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "4"},
    )
    assert prompt_text(body) == ('assistant\x1f{"id":"1","function":{"name":"f","arguments":"{}"}}\x1etool\x1f1\x1f4')


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("Once upon", "Once upon"),
        (["Once", "Twice"], "Once\x1eTwice"),
        ([0x41424344, 1], "DCBA\x01\x00\x00\x00"),
        ([[0x41424344], [0x45464748]], "DCBA\x1eHGFE"),
        ([-1, 5], "[-1,5]"),
        ([], ""),
        (None, ""),
        (7, "7"),
    ],
)
def test_a_prompt_may_be_text_token_ids_or_lists_of_them(prompt: object, text: str) -> None:
    assert prompt_text({"prompt": prompt}) == text


def test_a_body_without_a_prompt_has_no_text() -> None:
    assert prompt_text({}) == ""


@given(body=st.dictionaries(st.sampled_from(["messages", "prompt", "tools", "input", "x"]), JSON_VALUES))
def test_no_body_is_too_odd(body: dict[str, Any]) -> None:
    text_blocks(prompt_text(body), salt="s")


@given(body=st.dictionaries(st.sampled_from(["messages", "tools"]), JSON_VALUES), message=JSON_VALUES)
def test_a_message_more_leaves_the_text_before_it_as_it_is(body: dict[str, Any], message: object) -> None:
    messages = [user("Hello")]
    before = prompt_text({**body, "messages": messages})
    assert prompt_text({**body, "messages": [*messages, message]}).startswith(before)


def test_a_body_nested_as_deep_as_the_parser_allows_is_not_too_deep() -> None:
    body = orjson.loads('{"prompt":{"a":' + "[" * 1000 + "]" * 1000 + "}}")
    text_blocks(prompt_text(body), salt="")


def test_half_a_surrogate_pair_is_hashed_like_any_character() -> None:
    prompt = json.loads('"\\ud800"') * BLOCK_CHARACTERS
    assert len(text_blocks(prompt_text({"prompt": prompt}), salt="")) == 1


def test_a_block_has_sixteen_hex_digits_and_a_partial_block_none() -> None:
    assert text_blocks("a" * (BLOCK_CHARACTERS - 1), salt="") == ()
    # Other gateways and engines compare these: they never change.
    assert text_blocks("a" * (2 * BLOCK_CHARACTERS + 5), salt="") == EXPECTED_BLOCKS
    assert all(len(block) == 16 for block in EXPECTED_BLOCKS)


def test_a_hash_depends_on_all_before_it_and_on_nothing_after() -> None:
    whole = text_blocks("a" * 4096, salt="")
    assert text_blocks("a" * 3072 + "b" * 1024, salt="")[:3] == whole[:3]
    assert not set(text_blocks("b" + "a" * 4095, salt="")) & set(whole)


def test_tenants_with_other_salts_share_no_block() -> None:
    text = "a" * 4096
    assert not set(text_blocks(text, salt="one")) & set(text_blocks(text, salt="two"))
    assert not set(text_blocks("a" + text, salt="")) & set(text_blocks(text, salt="a"))


def test_a_text_of_any_length_has_a_bounded_number_of_blocks() -> None:
    assert len(text_blocks("a" * (BLOCK_CHARACTERS * MAX_BLOCKS + 1) * 2, salt="")) == MAX_BLOCKS
