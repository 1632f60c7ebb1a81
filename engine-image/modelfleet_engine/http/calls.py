"""A checked body to sequences the engine can run: prompts encoded, defaults applied, limits enforced."""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from dataclasses import dataclass

from modelfleet_engine.errors import RequestError
from modelfleet_engine.http.schema import MAX_MODEL_NAME, ChatCompletionBody, CompletionBody, SamplingBody
from modelfleet_engine.request import GenerationRequest
from modelfleet_engine.serving import ReadyModel, Serving
from modelfleet_engine.step_plan import SamplingParameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One HTTP call: its sequences in the order of its choices, and how to answer."""

    call_id: str
    created: int
    model_name: str
    requests: tuple[GenerationRequest, ...]
    prompt_tokens: int
    stop_strings: tuple[str, ...]
    is_stream: bool
    include_usage: bool


def check_model(serving: Serving, name: str) -> None:
    """Raises RequestError 404 unless `name` is a name of the served model."""
    if name not in serving.model_names:
        raise RequestError(
            f"The model `{name[:MAX_MODEL_NAME]}` does not exist here; served: {', '.join(serving.model_names)}.",
            status=404,
            param="model",
            code="model_not_found",
        )


async def chat_call(serving: Serving, model: ReadyModel, body: ChatCompletionBody) -> Call:
    """The call of a chat request; the conversation is rendered and encoded off the event loop."""
    messages = [message.for_template() for message in body.messages]
    _check_choices(body, model, prompts=1)
    _check_characters(model, sum(len(message["content"]) for message in messages), param="messages")
    with model.bridge.preparing(body.n):
        prompt = await asyncio.get_running_loop().run_in_executor(
            serving.tokenizer_pool, model.tokenizer.encode_chat, messages
        )
    prefix = f"chatcmpl-{uuid.uuid4().hex}"
    return _call(prefix, body, model, prompts=[prompt], token_limit=body.token_limit, param="messages")


async def completion_call(serving: Serving, model: ReadyModel, body: CompletionBody) -> Call:
    """The call of a plain completion; text prompts are encoded off the event loop."""
    loop = asyncio.get_running_loop()
    given = body.prompts
    _check_choices(body, model, prompts=len(given))
    for prompt in given:
        if isinstance(prompt, str):
            _check_characters(model, len(prompt), param="prompt")
    prompts: list[tuple[int, ...]] = []
    with model.bridge.preparing(len(given) * body.n):
        for prompt in given:
            if isinstance(prompt, str):
                prompts.append(await loop.run_in_executor(serving.tokenizer_pool, model.tokenizer.encode, prompt))
            else:
                prompts.append(prompt)
    prefix = f"cmpl-{uuid.uuid4().hex}"
    return _call(prefix, body, model, prompts=prompts, token_limit=body.token_limit, param="prompt")


def _call(
    call_id: str,
    body: SamplingBody,
    model: ReadyModel,
    *,
    prompts: list[tuple[int, ...]],
    token_limit: int | None,
    param: str,
) -> Call:
    _check_token_ids(body.stop_token_ids, vocab_size=model.vocab_size, param="stop_token_ids")
    stop_token_ids = frozenset(body.stop_token_ids)
    if not body.ignore_eos:
        stop_token_ids |= model.eos_token_ids
    requests: list[GenerationRequest] = []
    for prompt in prompts:
        max_tokens = _max_tokens(model, prompt_tokens=len(prompt), asked=token_limit, param=param)
        # Encoded text too: a tokenizer may know more tokens than the model has embeddings.
        _check_token_ids(prompt, vocab_size=model.vocab_size, param=param)
        # Of its own for each prompt, so that equal prompts get different samples.
        seed = body.seed if body.seed is not None else secrets.randbits(63)
        if body.min_tokens > max_tokens:
            raise RequestError(
                f"min_tokens: {body.min_tokens} is more than the {max_tokens} tokens that may be generated.",
                param="min_tokens",
                code="invalid_value",
            )
        for choice_index in range(body.n):
            requests.append(
                GenerationRequest(
                    request_id=f"{call_id}-{len(requests)}",
                    prompt_token_ids=prompt,
                    sampling=_sampling(body, model, seed=seed, choice_index=choice_index),
                    max_tokens=max_tokens,
                    min_tokens=body.min_tokens,
                    stop_token_ids=stop_token_ids,
                )
            )
    return Call(
        call_id=call_id,
        created=int(time.time()),
        model_name=body.model,
        requests=tuple(requests),
        prompt_tokens=sum(len(prompt) for prompt in prompts),
        stop_strings=body.stop_strings,
        is_stream=body.stream,
        include_usage=body.include_usage,
    )


def _sampling(body: SamplingBody, model: ReadyModel, *, seed: int, choice_index: int) -> SamplingParameters:
    """The request's values, else the model's own defaults, else OpenAI's."""
    defaults = model.tokenizer.defaults
    top_k = defaults.top_k if body.top_k is None else body.top_k
    return SamplingParameters(
        temperature=defaults.temperature if body.temperature is None else body.temperature,
        top_p=defaults.top_p if body.top_p is None else body.top_p,
        top_k=max(0, top_k),
        min_p=defaults.min_p if body.min_p is None else body.min_p,
        seed=seed,
        choice_index=choice_index,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=(
            defaults.repetition_penalty if body.repetition_penalty is None else body.repetition_penalty
        ),
    )


def _max_tokens(model: ReadyModel, *, prompt_tokens: int, asked: int | None, param: str) -> int:
    """How many tokens may be generated. Raises RequestError if prompt and answer cannot fit."""
    limit = model.max_model_len
    if prompt_tokens == 0:
        raise RequestError(f"{param}: the prompt is empty.", param=param, code="invalid_value")
    room = limit - prompt_tokens
    if room < 1 or (asked is not None and asked > room):
        wanted = "" if asked is None else f" and {asked} for the answer"
        raise RequestError(
            f"This model's maximum context length is {limit} tokens, but the request has {prompt_tokens} "
            f"tokens in {param}{wanted}.",
            param=param,
            code="context_length_exceeded",
        )
    if asked is not None:
        return asked
    default = model.tokenizer.defaults.max_new_tokens
    return room if default is None else min(room, default)


def _check_choices(body: SamplingBody, model: ReadyModel, *, prompts: int) -> None:
    capacity = model.bridge.max_outstanding
    if prompts * body.n > capacity:
        raise RequestError(
            f"n: {prompts} prompts with {body.n} choices each are more than the {capacity} sequences "
            "this engine holds at once.",
            param="n",
            code="invalid_value",
        )


def _check_characters(model: ReadyModel, characters: int, *, param: str) -> None:
    """Refuses, before it is encoded, text that the context cannot hold even in the longest tokens."""
    limit = model.max_model_len * model.tokenizer.longest_token_characters
    if characters > limit:
        raise RequestError(
            f"This model's maximum context length is {model.max_model_len} tokens, which hold at most {limit} "
            f"characters, but the request has {characters} characters in {param}.",
            param=param,
            code="context_length_exceeded",
        )


def _check_token_ids(token_ids: tuple[int, ...] | list[int], *, vocab_size: int, param: str) -> None:
    worst = max(token_ids, default=0)
    if worst >= vocab_size:
        raise RequestError(
            f"{param}: token id {worst} is outside the model's vocabulary of {vocab_size}.",
            param=param,
            code="invalid_value",
        )
