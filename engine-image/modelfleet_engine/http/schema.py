"""The request bodies we honour, field by field. What is not here is refused, never ignored.

Pure pydantic. `validate` turns violations into OpenAI-shaped errors and drops neutral values beforehand.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

MAX_CHOICES = 128
MAX_STOPS = 16
# Characters. The name is logged and shown in errors.
MAX_MODEL_NAME = 256
# More than every field we know, in any one object.
MAX_FIELDS = 64

NonEmpty = Annotated[str, Field(min_length=1)]
TokenId = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


class _Strict(BaseModel):
    """No silent conversion ("5" is not 5), no unknown fields.

    What a body can be wrong in is bounded: pydantic collects every violation, so lists stop at the first one and
    objects of very many fields are refused as a whole.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: object) -> object:
        if isinstance(value, dict) and len(value) > MAX_FIELDS:
            raise PydanticCustomError(
                "too_many_fields",
                "an object has at most {limit} fields, this one has {given}",
                {"limit": MAX_FIELDS, "given": len(value)},
            )
        return value


class StreamOptions(_Strict):
    include_usage: bool = False


class SamplingBody(_Strict):
    """What both endpoints share. None means "the model's default"."""

    model: Annotated[str, Field(max_length=MAX_MODEL_NAME)]
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    min_tokens: int = Field(default=0, ge=0)
    stop: NonEmpty | Annotated[list[NonEmpty], Field(max_length=MAX_STOPS)] = Field(default_factory=list)
    stop_token_ids: list[TokenId] = Field(default_factory=list, max_length=128, fail_fast=True)
    ignore_eos: bool = False
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    # vLLM writes "off" as -1, others as 0.
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, whichever way it was written."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> SamplingBody:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: is only allowed with stream: true")
        return self


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class ChatMessage(_Strict):
    """One message. Its content is text, or parts that are all text."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]
    name: str | None = None

    def for_template(self) -> dict[str, str]:
        """As chat templates expect it: plain text; `developer` is OpenAI's newer word for `system`."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        message = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if self.name is not None:
            message["name"] = self.name
        return message


class ChatCompletionBody(SamplingBody):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1, fail_fast=True)
    max_completion_tokens: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_limit(self) -> ChatCompletionBody:
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ValueError(
                f"max_completion_tokens: {self.max_completion_tokens} contradicts max_tokens {self.max_tokens}"
            )
        return self

    @property
    def token_limit(self) -> int | None:
        """The most tokens to generate, if the request says so."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


# OpenAI's default of the older endpoint.
COMPLETION_MAX_TOKENS = 16


class CompletionBody(SamplingBody):
    """`POST /v1/completions`. A prompt is text or token ids; several prompts make several groups of choices."""

    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)]
    )

    @property
    def token_limit(self) -> int:
        """The most tokens to generate."""
        return COMPLETION_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def prompts(self) -> tuple[str | tuple[int, ...], ...]:
        """The prompts, each text or token ids, whichever of the four ways they were written."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return (prompt,)
        token_ids = [item for item in prompt if isinstance(item, int)]
        if token_ids:
            return (tuple(token_ids),)
        return tuple(item if isinstance(item, str) else tuple(item) for item in prompt if not isinstance(item, int))
