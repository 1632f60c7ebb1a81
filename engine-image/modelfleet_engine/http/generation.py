"""One call while it runs: tokens in, text of each choice out, with stop strings, usage and latencies.

Whether the answer is streamed or whole is not known here.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType

from modelfleet_engine.bridge import ChoiceTokens, Generation
from modelfleet_engine.detokenizer import StopStrings
from modelfleet_engine.http.calls import Call
from modelfleet_engine.load import RequestCounts
from modelfleet_engine.request import FinishReason, GenerationRequest
from modelfleet_engine.serving import ReadyModel


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """New text of choice `index`; with `finish_reason` it is the last."""

    index: int
    text: str
    finish_reason: str | None


class _Choice:
    """Text and tokens of one choice so far."""

    def __init__(self, request: GenerationRequest, model: ReadyModel, stop_strings: tuple[str, ...]) -> None:
        self._detokenizer = model.tokenizer.detokenizer(request.prompt_token_ids)
        self._stops = StopStrings(stop_strings)
        self._min_tokens = request.min_tokens
        self.generated_tokens = 0
        self.last_token_seconds: float | None = None
        self.is_finished = False

    def feed(self, news: ChoiceTokens) -> tuple[str, str | None]:
        """The text that may go out, and why the choice ended if it did."""
        text = ""
        last = len(news.token_ids) - 1
        for index, token_id in enumerate(news.token_ids):
            self.generated_tokens += 1
            # The token that stops is an end mark, not text.
            is_end_mark = news.finish_reason is FinishReason.STOP and index == last
            piece = "" if is_end_mark else self._detokenizer.feed(token_id)
            if self.generated_tokens < self._min_tokens:
                text += piece
                continue
            piece, is_stopped = self._stops.feed(piece)
            text += piece
            if is_stopped:
                self.is_finished = True
                return text, FinishReason.STOP.value
        if news.finish_reason is None:
            return text, None
        self.is_finished = True
        piece, is_stopped = self._stops.feed(self._detokenizer.flush())
        reason = FinishReason.STOP if is_stopped else news.finish_reason
        return text + piece + ("" if is_stopped else self._stops.flush()), reason.value


class RunningCall:
    """Consumes a `Generation`. Use as a context manager: leaving it aborts what still runs."""

    def __init__(self, call: Call, model: ReadyModel, counts: RequestCounts, *, arrived_seconds: float) -> None:
        self.call = call
        self._counts = counts
        self._arrived_seconds = arrived_seconds
        self._choices = [_Choice(request, model, call.stop_strings) for request in call.requests]
        self._unfinished = len(self._choices)
        self._generation: Generation = model.bridge.submit(call.requests)
        self.first_token_seconds: float | None = None
        counts.prompt_tokens += call.prompt_tokens
        counts.prompt_lengths.observe(call.prompt_tokens)

    @property
    def completion_tokens(self) -> int:
        """Tokens generated so far, over all choices."""
        return sum(choice.generated_tokens for choice in self._choices)

    @property
    def usage(self) -> dict[str, object]:
        """OpenAI's usage object."""
        return {
            "prompt_tokens": self.call.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.call.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
        }

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
            if not choice.is_finished:
                self._counts.count_finished(FinishReason.ABORT.value)
                self._counts.output_lengths.observe(choice.generated_tokens)
        self._counts.duration.observe(time.monotonic() - self._arrived_seconds)

    async def deltas(self) -> AsyncIterator[list[TextDelta]]:
        """Batches of new text until every choice is finished. Raises GenerationCutError."""
        while self._unfinished:
            batch = [delta for news in await self._generation.next_tokens() for delta in self._take(news)]
            if batch:
                yield batch

    def _take(self, news: ChoiceTokens) -> list[TextDelta]:
        """The delta of a choice's new tokens: none where the text is still held back."""
        choice = self._choices[news.index]
        if choice.is_finished:
            return []  # came between the stop string and the abort
        text, reason = choice.feed(news)
        self._observe_latency(choice, news)
        if reason is not None:
            self._unfinished -= 1
            self._counts.count_finished(reason)
            self._counts.output_lengths.observe(choice.generated_tokens)
            if news.finish_reason is None:
                self._generation.abort_choice(news.index)
        elif not text:
            return []
        return [TextDelta(index=news.index, text=text, finish_reason=reason)]

    def _observe_latency(self, choice: _Choice, news: ChoiceTokens) -> None:
        self._counts.generated_tokens += len(news.at_seconds)
        for at_seconds in news.at_seconds:
            if choice.last_token_seconds is not None:
                self._counts.inter_token_latency.observe(at_seconds - choice.last_token_seconds)
            elif self.first_token_seconds is None:
                self.first_token_seconds = at_seconds - self._arrived_seconds
                self._counts.time_to_first_token.observe(self.first_token_seconds)
            choice.last_token_seconds = at_seconds
