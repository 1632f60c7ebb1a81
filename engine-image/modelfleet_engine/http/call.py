"""One HTTP call between its body and its answer: prompts, sequences, and what the answer carries. Data only."""

from __future__ import annotations

from dataclasses import dataclass

from modelfleet_engine.request import GenerationRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt. `text` is what the client wrote, for `echo`; None where it wrote token ids."""

    token_ids: tuple[int, ...]
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOptions:
    """What an answer carries and how it is sent. The names are those of the request's fields.

    `logprobs`: how many alternatives beside each token; None: none at all. `generates_nothing`: only the echoed
    prompt is wanted (`max_tokens: 0`). `stop_token_ids`: the client's own, which `stop_reason` names.
    """

    is_stream: bool
    include_usage: bool
    continuous_usage_stats: bool
    usage_comment: bool
    echo: bool
    generates_nothing: bool
    logprobs: int | None
    prompt_logprobs: int | None
    return_token_ids: bool
    skip_special_tokens: bool
    stop_strings: tuple[str, ...]
    stop_token_ids: frozenset[int]
    include_stop: bool

    @property
    def scores_prompt(self) -> bool:
        """Whether log probabilities of the prompt's tokens are wanted, in either form."""
        return self.prompt_logprobs is not None or (self.echo and self.logprobs is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One HTTP call: its sequences in the order of its choices, n for each prompt, and how to answer."""

    call_id: str
    created: int
    model_name: str
    prompts: tuple[Prompt, ...]
    requests: tuple[GenerationRequest, ...]
    options: AnswerOptions

    @property
    def choices_per_prompt(self) -> int:
        """OpenAI's `n`."""
        return len(self.requests) // len(self.prompts)

    @property
    def prompt_tokens(self) -> int:
        """Each prompt counted once, however many choices it has."""
        return sum(len(prompt.token_ids) for prompt in self.prompts)
