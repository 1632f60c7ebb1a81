"""One call while it runs: what is new of each choice, usage and latencies.

Whether the answer is streamed or whole is not known here.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from types import TracebackType

from modelfleet_engine.bridge import ChoiceTokens, Generation
from modelfleet_engine.errors import RequestError
from modelfleet_engine.http.call import Call
from modelfleet_engine.http.choice import Choice, ChoiceDelta
from modelfleet_engine.load import RequestCounts
from modelfleet_engine.request import FinishReason
from modelfleet_engine.serving import ReadyModel
from modelfleet_engine.step_plan import TokenLogprobs


class RunningCall:
    """Consumes a `Generation`. Use as a context manager: leaving it aborts what still runs."""

    def __init__(self, call: Call, model: ReadyModel, counts: RequestCounts, *, arrived_seconds: float) -> None:
        self.call = call
        self._counts = counts
        self._arrived_seconds = arrived_seconds
        self._choices = [
            Choice(
                index,
                request,
                call.options,
                model.tokenizer.detokenizer(
                    request.prompt_token_ids, skip_special_tokens=call.options.skip_special_tokens
                ),
            )
            for index, request in enumerate(call.requests)
        ]
        self._choices_per_prompt = call.choices_per_prompt
        self._unfinished = len(self._choices)
        self._scores_prompt = call.options.scores_prompt
        self._is_expired = False
        self._prompt_logprobs: list[list[TokenLogprobs]] = [[] for _ in call.prompts]
        self._generation: Generation = model.bridge.submit(call.requests)
        self.first_token_seconds: float | None = None
        counts.prompt_tokens += call.prompt_tokens
        counts.prompt_lengths.observe(call.prompt_tokens)

    @property
    def completion_tokens(self) -> int:
        """Tokens generated so far, over all choices."""
        return sum(choice.generated_tokens for choice in self._choices)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were in the prefix cache before this call, over all prompts.

        Of a prompt's choices the one that found the least counts: the others found what that one computed.
        """
        found = self._generation.cached_tokens
        per_prompt = self._choices_per_prompt
        return sum(
            min((found[index] for index in range(first, first + per_prompt) if index in found), default=0)
            for first in range(0, len(self._choices), per_prompt)
        )

    @property
    def usage(self) -> dict[str, object]:
        """OpenAI's usage object; a prompt counts once, however many choices it has."""
        prompt_tokens, completion_tokens = self.call.prompt_tokens, self.completion_tokens
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    @property
    def queue_seconds(self) -> float | None:
        """How long the call's first sequence waited for a step; None while all wait."""
        return self._generation.queue_seconds

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """Why the choices that are over ended, in the order of the choices."""
        return tuple(choice.ended.value for choice in self._choices if choice.ended is not None)

    def __enter__(self) -> RunningCall:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._generation.close()
        for choice in self._choices:
            if choice.ended is None:
                self._counts.count_finished(FinishReason.ABORT, generated_tokens=choice.generated_tokens)
        self._counts.duration.observe(time.monotonic() - self._arrived_seconds)

    async def deltas(self) -> AsyncIterator[list[ChoiceDelta]]:
        """Batches of news until every choice is finished.

        Raises:
            GenerationCutError: the drain's deadline passed, or the engine failed.
            RequestError: 504, the request's own deadline passed.
        """
        while self._unfinished:
            touched = [self._feed(news) for news in await self._generation.next_tokens()]
            if self._scores_prompt:
                # A choice may have waited for the scores that another one brought.
                touched = list(range(len(self._choices)))
            batch = [self._take(index) for index in touched if self._can_go_out(index)]
            if batch:
                yield batch
            if self._is_expired:
                raise RequestError(
                    "The request's deadline passed before its answer was complete.",
                    status=504,
                    code="deadline_exceeded",
                )

    def _feed(self, news: ChoiceTokens) -> int:
        """Gives a choice its news; answers its index."""
        choice = self._choices[news.index]
        if news.prompt_logprobs:
            self._prompt_logprobs[news.index // self._choices_per_prompt] += news.prompt_logprobs
        if choice.ended is not None:
            return news.index  # came between the stop string and the abort
        choice.feed(news)
        self._observe_latency(choice, news)
        if choice.ended is not None:
            self._unfinished -= 1
            self._is_expired |= choice.ended is FinishReason.DEADLINE
            self._counts.count_finished(choice.ended, generated_tokens=choice.generated_tokens)
            if news.finish_reason is None:
                self._generation.abort_choice(news.index)
        return news.index

    def _can_go_out(self, index: int) -> bool:
        """Whether a choice has news, and the scores of its prompt are there if they are wanted."""
        if not self._choices[index].has_news:
            return False
        if not self._scores_prompt:
            return True
        prompt = index // self._choices_per_prompt
        return len(self._prompt_logprobs[prompt]) == len(self.call.prompts[prompt].token_ids) - 1

    def _take(self, index: int) -> ChoiceDelta:
        return self._choices[index].take(self._prompt_logprobs[index // self._choices_per_prompt])

    def _observe_latency(self, choice: Choice, news: ChoiceTokens) -> None:
        self._counts.generated_tokens += len(news.at_seconds)
        for at_seconds in news.at_seconds:
            if choice.last_token_seconds is not None:
                self._counts.inter_token_latency.observe(at_seconds - choice.last_token_seconds)
            elif self.first_token_seconds is None:
                self.first_token_seconds = at_seconds - self._arrived_seconds
                self._counts.time_to_first_token.observe(self.first_token_seconds)
            choice.last_token_seconds = at_seconds
