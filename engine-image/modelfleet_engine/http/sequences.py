"""The sequences of one call: what each choice is asked to generate, with every default applied."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from modelfleet_engine.errors import RequestError
from modelfleet_engine.http.call import Prompt
from modelfleet_engine.http.headers import CallHeaders
from modelfleet_engine.http.limits import answer_token_limit, check_prompt_scores, check_token_ids
from modelfleet_engine.http.sampling import sampling_parameters, stop_token_ids
from modelfleet_engine.http.schema import ChatCompletionBody, GenerationBody
from modelfleet_engine.request import GenerationRequest
from modelfleet_engine.serving import ReadyModel


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """What all sequences of a call have in common."""

    call_id: str
    body: GenerationBody
    model: ReadyModel
    headers: CallHeaders
    stop_token_ids: frozenset[int]
    prefix_hashes: tuple[str, ...]

    @property
    def param(self) -> str:
        """The field the prompts came in."""
        return "messages" if isinstance(self.body, ChatCompletionBody) else "prompt"

    @property
    def cache_salt(self) -> str:
        """The tenant's salt and, within the tenant, the request's own (a header's salt has no line break)."""
        own = self.body.cache_salt
        return self.headers.cache_salt if own is None else f"{self.headers.cache_salt}\n{own}"

    @property
    def prompt_logprobs(self) -> int | None:
        """How many alternatives the prompt's tokens are scored with: an echo is scored like the answer."""
        echoed = self.body.answer_logprobs if self.body.is_echo else None
        wanted = [count for count in (self.body.prompt_logprobs, echoed) if count is not None]
        return max(wanted, default=None)


def sequences_of(
    call_id: str, body: GenerationBody, model: ReadyModel, *, prompts: tuple[Prompt, ...], headers: CallHeaders
) -> tuple[GenerationRequest, ...]:
    """One request for each choice, those of one prompt next to each other.

    Raises:
        RequestError: a limit of the model is passed, or a token id is outside its vocabulary.
    """
    _check_prompt_scores(body, prompt_tokens=sum(len(prompt.token_ids) for prompt in prompts))
    # The gateway's hashes are those of one prompt, from its beginning.
    is_whole = len(prompts) == 1 and body.truncate_prompt_tokens is None
    source = _Source(
        call_id=call_id,
        body=body,
        model=model,
        headers=headers,
        stop_token_ids=stop_token_ids(body, model),
        prefix_hashes=headers.prefix_hashes if is_whole else (),
    )
    requests: list[GenerationRequest] = []
    for prompt in prompts:
        requests.extend(_choices(source, prompt, first_index=len(requests)))
    return tuple(requests)


def _check_prompt_scores(body: GenerationBody, *, prompt_tokens: int) -> None:
    # A chat's stand beside its choices, a completion's in each.
    shown_times = 1 if isinstance(body, ChatCompletionBody) else body.n
    scored_tokens = prompt_tokens * shown_times
    if body.prompt_logprobs is not None:
        check_prompt_scores(scored_tokens * (1 + body.prompt_logprobs), param="prompt_logprobs")
    if body.is_echo and body.answer_logprobs is not None:
        check_prompt_scores(scored_tokens * (1 + body.answer_logprobs), param="logprobs")


def _choices(source: _Source, prompt: Prompt, *, first_index: int) -> list[GenerationRequest]:
    """The n choices of one prompt, which is computed once for all of them."""
    body, model = source.body, source.model
    max_tokens = _max_tokens(source, prompt)
    # Of its own for each prompt, so that equal prompts get different samples.
    seed = body.seed if body.seed is not None else secrets.randbits(63)
    return [
        GenerationRequest(
            request_id=f"{source.call_id}-{first_index + choice_index}",
            prompt_token_ids=prompt.token_ids,
            sampling=sampling_parameters(body, model, seed=seed, choice_index=choice_index),
            max_tokens=max_tokens,
            min_tokens=body.min_tokens,
            stop_token_ids=source.stop_token_ids,
            priority=body.priority,
            deadline_seconds=source.headers.deadline_seconds,
            cache_salt=source.cache_salt,
            prefix_hashes=source.prefix_hashes,
            group_id=f"{source.call_id}-{first_index}" if body.n > 1 else "",
            # Equal for all choices: the first one's are shown with every one.
            prompt_logprobs=source.prompt_logprobs if choice_index == 0 else None,
        )
        for choice_index in range(body.n)
    ]


def _max_tokens(source: _Source, prompt: Prompt) -> int:
    """The most tokens to generate; 1 where none is wanted: the engine always draws one, and it is dropped."""
    body, model, param = source.body, source.model, source.param
    asked = body.token_limit
    limit = answer_token_limit(
        model, prompt_tokens=len(prompt.token_ids), asked=None if asked is None else max(1, asked), param=param
    )
    # Encoded text too: a tokenizer may know more tokens than the model has embeddings.
    check_token_ids(prompt.token_ids, vocab_size=model.vocab_size, param=param)
    most = 0 if asked == 0 else limit
    if body.min_tokens > most:
        raise RequestError(
            f"min_tokens: {body.min_tokens} is more than the {most} tokens that may be generated.",
            param="min_tokens",
            code="invalid_value",
        )
    return limit
