"""What our answers look like, for the OpenAPI document.

Answers are written as bytes for speed (`responses`); these models describe them and nothing is built from them. The
tests hold every kind of answer against them, and no field but these may be in one.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ErrorDetail(_Answer):
    """OpenAI's four keys. `param` is the field at fault, `code` a stable word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(_Answer):
    """Every refusal and every failure."""

    error: ErrorDetail


class PromptTokensDetails(_Answer):
    """`cached_tokens` were in the prefix cache before the call."""

    cached_tokens: int


class Usage(_Answer):
    """A prompt counts once, however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class PromptTokenLogprob(_Answer):
    """vLLM's entry for one token at one position of the prompt."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptTokenLogprob] | None]
FinishReasonWord = Literal["stop", "length"]


class ChatTokenLogprob(_Answer):
    """`bytes` is exact; `token` of a part of a character is its bytes escaped."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprobs(ChatTokenLogprob):
    """A generated token with its most likely alternatives."""

    top_logprobs: list[ChatTokenLogprob]


class ChatLogprobs(_Answer):
    """One entry for each generated token."""

    content: list[ChatTokenLogprobs]
    refusal: None


class ChatAnswerMessage(_Answer):
    """The assistant's words."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(_Answer):
    """`token_ids` only with `return_token_ids`. `stop_reason` is the stop string or stop token that ended it."""

    index: int
    message: ChatAnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReasonWord
    stop_reason: int | str | None
    token_ids: list[int] | None = None


class ChatCompletion(_Answer):
    """The answer of `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class CompletionLogprobColumns(_Answer):
    """One entry for each token in each column; null for the echoed prompt's first."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(_Answer):
    """The last three only where they were asked for."""

    index: int
    text: str
    logprobs: CompletionLogprobColumns | None
    finish_reason: FinishReasonWord
    stop_reason: int | str | None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class Completion(_Answer):
    """The answer of `/v1/completions`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class ModelCard(_Answer):
    """The served model; `max_model_len` is null until it is loaded."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    max_model_len: int | None


class ModelList(_Answer):
    """The answer of `/v1/models`."""

    object: Literal["list"]
    data: list[ModelCard]


class Tokenized(_Answer):
    """The answer of `/tokenize`."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(_Answer):
    """The answer of `/detokenize`."""

    prompt: str


class Health(_Answer):
    """The answer of `/health`; `reason` says why it is not "ok"."""

    status: Literal["ok", "unhealthy"]
    reason: str | None = None


class Readiness(_Answer):
    """The answer of `/ready`."""

    ready: bool
    phase: str
