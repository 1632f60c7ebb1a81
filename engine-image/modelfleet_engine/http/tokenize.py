"""`POST /tokenize` and `POST /detokenize` in vLLM's shape: what the model's tokenizer makes of a text, and back.

The work is done off the event loop, on the threads that encode prompts; so that it never holds those up for long, only
a few calls may wait for it, and texts are bounded as prompts are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import orjson
from aiohttp import web
from pydantic import Field, model_validator

from modelfleet_engine.errors import RequestError
from modelfleet_engine.http.calls import check_model
from modelfleet_engine.http.keys import SERVING
from modelfleet_engine.http.limits import check_characters, check_token_count, check_token_ids
from modelfleet_engine.http.openai import read_body, ready_model
from modelfleet_engine.http.record import RECORD
from modelfleet_engine.http.schema import (
    MAX_MESSAGES,
    MAX_MODEL_NAME,
    MAX_TEMPLATE_ARGUMENTS,
    ChatMessage,
    StrictBody,
    TokenId,
)
from modelfleet_engine.serving import ReadyModel
from modelfleet_engine.tokenizer import ModelTokenizer

# Calls at work or waiting; beyond them a 429. Each takes at most about as long as the longest prompt.
MAX_PENDING_CALLS = 16


class TokenizeBody(StrictBody):
    """A text or a conversation; `model` may be left out, there is one."""

    model: Annotated[str, Field(max_length=MAX_MODEL_NAME)] | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    # None: with a text yes, with a conversation no, whose template writes them.
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, max_length=MAX_TEMPLATE_ARGUMENTS)
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: exactly one of prompt and messages is needed")
        return self

    @property
    def characters(self) -> int:
        """How long the text is, without what a template adds."""
        if self.messages is None:
            return len(self.prompt or "")
        return sum(message.characters for message in self.messages)


class DetokenizeBody(StrictBody):
    """Token ids, special ones included."""

    model: Annotated[str, Field(max_length=MAX_MODEL_NAME)] | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]


class PendingCalls:
    """How many calls are at work or wait. Touched on the event loop's thread only."""

    def __init__(self) -> None:
        self._count = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Holds a place. Raises RequestError 429 if there is none."""
        if self._count >= MAX_PENDING_CALLS:
            raise RequestError(
                f"The tokenizer is busy: at most {MAX_PENDING_CALLS} calls may wait for it.",
                status=429,
                code="queue_full",
                retry_after_seconds=1,
            )
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1


PENDING_CALLS = web.AppKey("pending_tokenizer_calls", PendingCalls)


def add_tokenizer_routes(app: web.Application) -> None:
    """Both routes, and the count of calls that wait."""
    app[PENDING_CALLS] = PendingCalls()
    app.add_routes([web.post("/tokenize", tokenize), web.post("/detokenize", detokenize)])


async def tokenize(request: web.Request) -> web.Response:
    """`POST /tokenize`: count, the model's maximum, token ids and, if wanted, how the vocabulary spells them."""
    model = ready_model(request.app[SERVING])
    body = await read_body(request, TokenizeBody)
    _check_name(request, body.model)
    check_characters(model, body.characters, param="prompt" if body.messages is None else "messages")
    return await _answer(request, lambda: _tokenized(model, body))


async def detokenize(request: web.Request) -> web.Response:
    """`POST /detokenize`: the text of the token ids."""
    model = ready_model(request.app[SERVING])
    body = await read_body(request, DetokenizeBody)
    _check_name(request, body.model)
    check_token_count(model, len(body.tokens), param="tokens")
    check_token_ids(body.tokens, vocab_size=model.vocab_size, param="tokens")
    return await _answer(request, lambda: {"prompt": model.tokenizer.decode(body.tokens, skip_special_tokens=False)})


def _tokenized(model: ReadyModel, body: TokenizeBody) -> dict[str, object]:
    token_ids = _encode(model.tokenizer, body)
    return {
        "count": len(token_ids),
        "max_model_len": model.max_model_len,
        "tokens": token_ids,
        "token_strs": [model.tokenizer.token_string(token_id) for token_id in token_ids]
        if body.return_token_strs
        else None,
    }


def _encode(tokenizer: ModelTokenizer, body: TokenizeBody) -> tuple[int, ...]:
    if body.messages is None:
        return tokenizer.encode(body.prompt or "", add_special_tokens=body.add_special_tokens is not False)
    return tokenizer.encode_chat(
        [message.for_template() for message in body.messages],
        add_generation_prompt=body.add_generation_prompt,
        add_special_tokens=bool(body.add_special_tokens),
        template_arguments=body.chat_template_kwargs,
    )


def _check_name(request: web.Request, name: str | None) -> None:
    if name is not None:
        request[RECORD].model = name
        check_model(request.app[SERVING], name)


async def _answer(request: web.Request, work: Callable[[], dict[str, object]]) -> web.Response:
    """Does the work, and its JSON, on a tokenizer's thread."""
    pool = request.app[SERVING].tokenizer_pool
    with request.app[PENDING_CALLS].one():
        body = await asyncio.get_running_loop().run_in_executor(pool, lambda: orjson.dumps(work()))
    return web.Response(body=body, content_type="application/json")
