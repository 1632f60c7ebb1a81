"""The text that a prompt's prefix is recognised by, and the chained hashes of its blocks. PURE.

The gateway has no tokenizer: equal text means equal tokens for one model, and that is all routing needs. The engine
decides by tokens what is really reused, so a wrong guess here costs time, never an answer. Must not judge a body:
what it cannot read is the engine's to refuse.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import xxhash

# About 256 tokens of English, some KV blocks: enough for a header of a few hundred hashes to cover long prompts.
BLOCK_CHARACTERS = 1024
# 131,072 characters: what is beyond it is reused as well, only not chosen by.
MAX_BLOCKS = 128
# Longer texts of a URL are images themselves (`data:`): a digest stands for them, for they are no text of the prompt.
MAX_URL_CHARACTERS = 512
# Between the parts of the canonical text; control characters that no template prints.
_MESSAGE, _PART, _FIELD = "\x1e", "\x1d", "\x1f"
_MESSAGE_FIELDS = ("role", "name", "tool_call_id", "tool_calls", "function_call", "content")
# Parts of a message that hold a URL: {"type": "image_url", "image_url": {"url": "..."}}.
_URL_PARTS = ("image_url", "video_url", "audio_url", "input_audio")


def prompt_text(body: Mapping[str, Any]) -> str:
    """Everything of a request that becomes its prompt, in the order of a chat template: tools, then messages.

    Token ids become one character per byte of them, so that they take about as much room as text.
    """
    messages = body.get("messages")
    if isinstance(messages, list):
        tools = body.get("tools") or body.get("functions")
        parts = [_as_text(tools)] if tools else []
        parts += [_message_text(message) for message in messages]
        return _MESSAGE.join(parts)
    prompt = body.get("prompt", body.get("input"))
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list):
        return _prompts_text(prompt)
    return "" if prompt is None else _as_text(prompt)


def text_blocks(text: str, *, salt: str) -> tuple[str, ...]:
    """One hash per whole block of the text; hash k covers the salt and blocks 0 to k.

    The first blocks of a long text alone; a last partial block has no hash. 4 us for 8,192 characters.
    """
    blocks = min(len(text) // BLOCK_CHARACTERS, MAX_BLOCKS)
    chain = xxhash.xxh3_64(_as_bytes(salt))
    # The salt ends somewhere: "ab" + "c..." is not "a" + "bc...".
    chain.update(b"\xff")
    hashes = []
    for start in range(0, blocks * BLOCK_CHARACTERS, BLOCK_CHARACTERS):
        chain.update(_as_bytes(text[start : start + BLOCK_CHARACTERS]))
        hashes.append(chain.hexdigest())
    return tuple(hashes)


def _as_bytes(text: str) -> bytes:
    # JSON can hold half of a surrogate pair: "\ud800".
    return text.encode("utf-8", "surrogatepass")


def _message_text(message: object) -> str:
    if not isinstance(message, dict):
        return _as_text(message)
    return _FIELD.join(_content_text(message[field]) for field in _MESSAGE_FIELDS if message.get(field))


def _content_text(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return _PART.join(_part_text(part) for part in content)
    return _as_text(content)


def _part_text(part: object) -> str:
    if not isinstance(part, dict):
        return _as_text(part)
    text = part.get("text")
    if isinstance(text, str):
        return text
    for kind in _URL_PARTS:
        media = part.get(kind)
        if isinstance(media, dict):
            media = media.get("url") or media.get("data")
        if isinstance(media, str):
            return _url_text(media)
    return _as_text(part)


def _url_text(url: str) -> str:
    if len(url) <= MAX_URL_CHARACTERS:
        return url
    return f"{len(url)}:{xxhash.xxh3_64_hexdigest(_as_bytes(url))}"


def _prompts_text(prompts: Sequence[object]) -> str:
    """Of a list of texts, of token ids, or of lists of them."""
    if _are_ids(prompts):
        return _token_ids_text(prompts)
    return _MESSAGE.join(
        _token_ids_text(prompt) if isinstance(prompt, list) and _are_ids(prompt) else _as_text(prompt)
        for prompt in prompts
    )


def _are_ids(values: Sequence[object]) -> bool:
    return all(type(value) is int for value in values)


def _token_ids_text(token_ids: Sequence[Any]) -> str:
    try:
        return array("I", token_ids).tobytes().decode("latin-1")
    except OverflowError:  # an id below zero or above 32 bits
        return _as_text(list(token_ids))


def _as_text(value: object) -> str:
    """Of anything else in a body: its JSON, and where that cannot be (nested too deep) Python's own form of it."""
    if isinstance(value, str):
        return value
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
    except orjson.JSONEncodeError:
        return _repr(value)


def _repr(value: object) -> str:
    try:
        return repr(value)
    except RecursionError:
        return ""
