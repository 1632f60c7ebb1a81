"""A checked body to a call the engine can run: prompts encoded off the event loop, limits enforced."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from functools import partial

from modelfleet_engine.errors import RequestError
from modelfleet_engine.http.call import AnswerOptions, Call, Prompt
from modelfleet_engine.http.headers import CallHeaders
from modelfleet_engine.http.limits import check_characters, check_choices
from modelfleet_engine.http.schema import MAX_MODEL_NAME, ChatCompletionBody, CompletionBody, GenerationBody
from modelfleet_engine.http.sequences import sequences_of
from modelfleet_engine.serving import ReadyModel, Serving


def check_model(serving: Serving, name: str) -> None:
    """Raises RequestError 404 unless `name` is a name of the served model."""
    if name not in serving.model_names:
        raise RequestError(
            f"The model `{name[:MAX_MODEL_NAME]}` does not exist here; served: {', '.join(serving.model_names)}.",
            status=404,
            param="model",
            code="model_not_found",
        )


async def chat_call(serving: Serving, model: ReadyModel, body: ChatCompletionBody, headers: CallHeaders) -> Call:
    """The call of a chat request; the conversation is rendered and encoded off the event loop."""
    check_choices(model, prompts=1, choices=body.n)
    check_characters(model, sum(message.characters for message in body.messages), param="messages")

    def encode() -> tuple[int, ...]:
        return model.tokenizer.encode_chat(
            [message.for_template() for message in body.messages],
            add_special_tokens=bool(body.add_special_tokens),
            template_arguments=body.chat_template_kwargs,
        )

    with model.bridge.preparing(body.n):
        token_ids = await _encode(serving, encode)
    prompt = _truncated(Prompt(token_ids=token_ids), body)
    return _call(f"chatcmpl-{uuid.uuid4().hex}", body, model, prompts=(prompt,), headers=headers)


async def completion_call(serving: Serving, model: ReadyModel, body: CompletionBody, headers: CallHeaders) -> Call:
    """The call of a plain completion; text prompts are encoded off the event loop."""
    given = body.prompts
    check_choices(model, prompts=len(given), choices=body.n)
    for prompt in given:
        if isinstance(prompt, str):
            check_characters(model, len(prompt), param="prompt")
    special = body.add_special_tokens is not False
    prompts: list[Prompt] = []
    with model.bridge.preparing(len(given) * body.n):
        for prompt in given:
            if isinstance(prompt, str):
                encode = partial(model.tokenizer.encode, prompt, add_special_tokens=special)
                prompts.append(_truncated(Prompt(token_ids=await _encode(serving, encode), text=prompt), body))
            else:
                prompts.append(_truncated(Prompt(token_ids=prompt), body))
    return _call(f"cmpl-{uuid.uuid4().hex}", body, model, prompts=tuple(prompts), headers=headers)


async def _encode(serving: Serving, encode: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
    return await asyncio.get_running_loop().run_in_executor(serving.tokenizer_pool, encode)


def _truncated(prompt: Prompt, body: GenerationBody) -> Prompt:
    """The prompt's last `truncate_prompt_tokens` tokens; its text is then no longer what the client wrote."""
    keep = body.truncate_prompt_tokens
    if keep is None or len(prompt.token_ids) <= keep:
        return prompt
    return Prompt(token_ids=prompt.token_ids[-keep:])


def _call(
    call_id: str, body: GenerationBody, model: ReadyModel, *, prompts: tuple[Prompt, ...], headers: CallHeaders
) -> Call:
    return Call(
        call_id=call_id,
        created=int(time.time()),
        model_name=body.model,
        prompts=prompts,
        requests=sequences_of(call_id, body, model, prompts=prompts, headers=headers),
        options=_options(body, usage_comment=headers.wants_usage_comment),
    )


def _options(body: GenerationBody, *, usage_comment: bool) -> AnswerOptions:
    stream_options = body.stream_options
    return AnswerOptions(
        is_stream=body.stream,
        include_usage=stream_options is not None and stream_options.include_usage,
        continuous_usage_stats=stream_options is not None and stream_options.continuous_usage_stats,
        usage_comment=usage_comment,
        echo=body.is_echo,
        generates_nothing=body.token_limit == 0,
        logprobs=body.answer_logprobs,
        prompt_logprobs=body.prompt_logprobs,
        return_token_ids=body.return_token_ids,
        skip_special_tokens=body.skip_special_tokens,
        stop_strings=body.stop_strings,
        stop_token_ids=frozenset(body.stop_token_ids),
        include_stop=body.include_stop_str_in_output,
    )
