"""What a call may ask of this model: context, vocabulary, choices. Refusals say what, the limit and what was given."""

from __future__ import annotations

from collections.abc import Iterable

from modelfleet_engine.errors import RequestError
from modelfleet_engine.serving import ReadyModel

# Log probabilities of prompt tokens that one answer shows: 70 MB of JSON, and some 400 MB while it is made.
MAX_PROMPT_SCORES = 2**20


def answer_token_limit(model: ReadyModel, *, prompt_tokens: int, asked: int | None, param: str) -> int:
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


def check_choices(model: ReadyModel, *, prompts: int, choices: int) -> None:
    """Refuses more sequences than the engine ever holds: waiting would not help."""
    capacity = model.bridge.max_outstanding
    if prompts * choices > capacity:
        raise RequestError(
            f"n: {prompts} prompts with {choices} choices each are more than the {capacity} sequences "
            "this engine holds at once.",
            param="n",
            code="invalid_value",
        )


def check_characters(model: ReadyModel, characters: int, *, param: str) -> None:
    """Refuses, before it is encoded, text that the context cannot hold even in the longest tokens."""
    limit = model.max_model_len * model.tokenizer.longest_token_characters
    if characters > limit:
        raise RequestError(
            f"This model's maximum context length is {model.max_model_len} tokens, which hold at most {limit} "
            f"characters, but the request has {characters} characters in {param}.",
            param=param,
            code="context_length_exceeded",
        )


def check_token_count(model: ReadyModel, tokens: int, *, param: str) -> None:
    """Refuses more tokens than a context has."""
    if tokens > model.max_model_len:
        raise RequestError(
            f"This model's maximum context length is {model.max_model_len} tokens, but the request has {tokens} "
            f"tokens in {param}.",
            param=param,
            code="context_length_exceeded",
        )


def check_prompt_scores(scores: int, *, param: str) -> None:
    """Refuses an answer that a few bytes of request would make gigabytes."""
    if scores > MAX_PROMPT_SCORES:
        raise RequestError(
            f"{param}: the answer would hold {scores} log probabilities of prompt tokens, over all choices and "
            f"alternatives; at most {MAX_PROMPT_SCORES} are shown.",
            param=param,
            code="invalid_value",
        )


def check_token_ids(token_ids: Iterable[int], *, vocab_size: int, param: str) -> None:
    """Refuses ids the model has no embedding for."""
    worst = max(token_ids, default=0)
    if worst >= vocab_size:
        raise RequestError(
            f"{param}: token id {worst} is outside the model's vocabulary of {vocab_size}.",
            param=param,
            code="invalid_value",
        )
