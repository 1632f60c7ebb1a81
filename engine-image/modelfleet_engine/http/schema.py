"""The request bodies we honour, field by field. What is not here is refused, never ignored.

Pure pydantic. `validate` turns violations into OpenAI-shaped errors and drops neutral values beforehand.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

MAX_CHOICES = 128
MAX_STOPS = 16
# vLLM's default for its `max_logprobs`; OpenAI allows 20 in chats and 5 in completions.
MAX_LOGPROBS = 20
# OpenAI's limits of `logit_bias`.
MAX_LOGIT_BIASES = 300
MAX_LOGIT_BIAS = 100
# Characters. The name is logged and shown in errors.
MAX_MODEL_NAME = 256
MAX_CACHE_SALT = 256
# More turns than any context holds; each costs microseconds of checks.
MAX_MESSAGES = 16_384
# A template sees what it knows of them; nothing else bounds them.
MAX_TEMPLATE_ARGUMENTS = 16
# More than every field we know, in any one object.
MAX_FIELDS = 64

# Each is searched for in every piece of text.
StopString = Annotated[str, Field(min_length=1, max_length=1024)]
TokenId = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
# JSON has no integer keys.
TokenIdText = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
LogprobCount = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]


class StrictBody(BaseModel):
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


class StreamOptions(StrictBody):
    """`continuous_usage_stats` is vLLM's: with it each chunk carries the usage so far."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class SamplingBody(StrictBody):
    """What both endpoints share: OpenAI's fields, then vLLM's. None means "the model's default"."""

    model: Annotated[str, Field(max_length=MAX_MODEL_NAME)]
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    best_of: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)] = Field(default_factory=list)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    logit_bias: dict[TokenIdText, Annotated[float, Field(ge=-MAX_LOGIT_BIAS, le=MAX_LOGIT_BIAS)]] = Field(
        default_factory=dict, max_length=MAX_LOGIT_BIASES, json_schema_extra={"additionalProperties": False}
    )

    min_tokens: int = Field(default=0, ge=0)
    stop_token_ids: list[TokenId] = Field(default_factory=list, max_length=128, fail_fast=True)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    # vLLM writes "off" as -1, others as 0.
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    skip_special_tokens: bool = True
    add_special_tokens: bool | None = None
    # The last so many tokens of the prompt are kept, as in vLLM.
    truncate_prompt_tokens: int | None = Field(default=None, ge=1)
    prompt_logprobs: LogprobCount | None = None
    return_token_ids: bool = False
    # Lower is sooner.
    priority: int = Field(default=0, ge=-(2**31), lt=2**31)
    cache_salt: str | None = Field(default=None, min_length=1, max_length=MAX_CACHE_SALT)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, whichever way it was written."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @model_validator(mode="after")
    def _fields_agree(self) -> SamplingBody:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: is only allowed with stream: true")
        if self.prompt_logprobs is not None and self.stream:
            raise ValueError("prompt_logprobs: is not available with stream: true")
        if self.best_of not in (None, self.n):
            raise ValueError(f"best_of: {self.best_of} differs from n {self.n}; every choice is returned here")
        return self


class TextPart(StrictBody):
    type: Literal["text"]
    text: str


class ChatMessage(StrictBody):
    """One message. Its content is text, or parts that are all text."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]
    name: str | None = None

    @property
    def characters(self) -> int:
        """How long the text is."""
        return len(self.content) if isinstance(self.content, str) else sum(len(part.text) for part in self.content)

    def for_template(self) -> dict[str, object]:
        """As `ChatTemplate.render` takes it; `developer` is OpenAI's newer word for `system`."""
        message = self.model_dump(exclude_none=True)
        if self.role == "developer":
            message["role"] = "system"
        return message


class ChatCompletionBody(SamplingBody):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: LogprobCount | None = None
    # vLLM's: named values the model's template knows, such as `enable_thinking`.
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, max_length=MAX_TEMPLATE_ARGUMENTS)

    @model_validator(mode="after")
    def _chat_fields_agree(self) -> ChatCompletionBody:
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ValueError(
                f"max_completion_tokens: {self.max_completion_tokens} contradicts max_tokens {self.max_tokens}"
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: is only allowed with logprobs: true")
        return self

    @property
    def is_echo(self) -> bool:
        """Whether the answer begins with the prompt; chats have no such field."""
        return False

    @property
    def answer_logprobs(self) -> int | None:
        """How many alternatives to report beside each token; None: no log probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

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

    # 0 scores the echoed prompt and generates nothing.
    max_tokens: int | None = Field(default=None, ge=0)
    echo: bool = False
    logprobs: LogprobCount | None = None

    @model_validator(mode="after")
    def _something_is_asked_for(self) -> CompletionBody:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens: 0 is only allowed with echo: true")
        return self

    @property
    def is_echo(self) -> bool:
        """Whether the answer begins with the prompt."""
        return self.echo

    @property
    def answer_logprobs(self) -> int | None:
        """How many alternatives to report beside each token; None: no log probabilities."""
        return self.logprobs

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
        if isinstance(prompt[0], int):
            # Checked: then all are. One by one it would take a tenth of a second for a body of ids.
            return (tuple(prompt),)
        return tuple(item if isinstance(item, str) else tuple(item) for item in cast(list[str | list[int]], prompt))


GenerationBody = ChatCompletionBody | CompletionBody
