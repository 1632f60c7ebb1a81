"""One choice while it is generated: token ids in, text and columns out, with stop strings and reasons. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from modelfleet_engine.bridge import ChoiceTokens
from modelfleet_engine.detokenizer import Detokenizer, StopStrings
from modelfleet_engine.http.call import AnswerOptions
from modelfleet_engine.request import FinishReason, GenerationRequest
from modelfleet_engine.step_plan import TokenLogprobs


@dataclass(slots=True, kw_only=True)
class ChoiceDelta:
    """What is new of choice `index`; with `finish_reason` it is the last.

    `token_ids` and `logprobs` have one entry for each generated token of `usage`, the end token included, and stay
    empty where nobody asked. `is_first`: nothing went out before, so the prompt's part goes with it.
    `prompt_logprobs` (of the prompt's tokens 1 and on) come with the first.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    is_first: bool = False
    prompt_logprobs: Sequence[TokenLogprobs] = ()
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def extend(self, newer: ChoiceDelta) -> None:
        """Joins what came next."""
        self.text += newer.text
        self.token_ids.extend(newer.token_ids)
        self.logprobs.extend(newer.logprobs)
        self.finish_reason = newer.finish_reason
        self.stop_reason = newer.stop_reason


class Choice:
    """Text and tokens of one choice so far. `ended` is why it is over; None while it runs."""

    def __init__(
        self, index: int, request: GenerationRequest, options: AnswerOptions, detokenizer: Detokenizer
    ) -> None:
        self._index = index
        self._options = options
        self._detokenizer = detokenizer
        self._stops = StopStrings(options.stop_strings, include_stop=options.include_stop)
        self._min_tokens = request.min_tokens
        self._keeps_tokens = options.return_token_ids or options.logprobs is not None
        self._pending = ChoiceDelta(index=index, is_first=True)
        self.generated_tokens = 0
        self.last_token_seconds: float | None = None
        self.ended: FinishReason | None = None

    @property
    def has_news(self) -> bool:
        """Whether there is something to send; tokens without text wait for the text."""
        return bool(self._pending.text) or self._pending.finish_reason is not None

    def take(self, prompt_logprobs: Sequence[TokenLogprobs]) -> ChoiceDelta:
        """What came since it was last taken; the prompt's scores go with the first."""
        delta, self._pending = self._pending, ChoiceDelta(index=self._index)
        if delta.is_first:
            delta.prompt_logprobs = prompt_logprobs
        return delta

    def feed(self, news: ChoiceTokens) -> None:
        """Adds new tokens. Those after a stop string are not part of the choice."""
        if self._options.generates_nothing:
            # The one token the engine always draws is not wanted.
            if news.finish_reason is not None:
                self._end(FinishReason.LENGTH if news.finish_reason is FinishReason.STOP else news.finish_reason)
            return
        before = self.generated_tokens
        self._pending.text += self._text_with_stops(news) if self._options.stop_strings else self._text(news)
        if self._keeps_tokens:
            taken = self.generated_tokens - before
            self._pending.token_ids += news.token_ids[:taken]
            self._pending.logprobs += news.logprobs[:taken]

    def _text(self, news: ChoiceTokens) -> str:
        self.generated_tokens += len(news.token_ids)
        shown = self._shown(news)
        text = self._detokenizer.feed(shown[0]) if len(shown) == 1 else self._detokenizer.feed_all(shown)
        if news.finish_reason is None:
            return text
        self._end(news.finish_reason, stop_reason=self._stop_token(news))
        return text + self._detokenizer.flush()

    def _text_with_stops(self, news: ChoiceTokens) -> str:
        """Token by token, because the token that completes a stop string is the last one that counts."""
        text = ""
        shown = self._shown(news)
        for token_id in shown:
            self.generated_tokens += 1
            piece = self._detokenizer.feed(token_id)
            # As with stop tokens: none is drawn before `min_tokens` others were, so the next may be the first to stop.
            if self.generated_tokens <= self._min_tokens:
                text += self._stops.skip(piece)
                continue
            piece, is_stopped = self._stops.feed(piece)
            text += piece
            if is_stopped:
                self._end(FinishReason.STOP, stop_reason=self._stops.found)
                return text
        self.generated_tokens += len(news.token_ids) - len(shown)
        if news.finish_reason is None:
            return text
        piece, is_stopped = self._stops.feed(self._detokenizer.flush())
        if is_stopped:
            self._end(FinishReason.STOP, stop_reason=self._stops.found)
            return text + piece
        self._end(news.finish_reason, stop_reason=self._stop_token(news))
        return text + piece + self._stops.flush()

    def _shown(self, news: ChoiceTokens) -> Sequence[int]:
        """The tokens that are text: the one that stops is an end mark, unless it is wanted."""
        is_end_mark = news.finish_reason is FinishReason.STOP and not self._options.include_stop
        return news.token_ids[:-1] if is_end_mark else news.token_ids

    def _stop_token(self, news: ChoiceTokens) -> int | None:
        """vLLM's `stop_reason`: the client's own stop token; None for the model's end token."""
        if news.finish_reason is not FinishReason.STOP or news.token_ids[-1] not in self._options.stop_token_ids:
            return None
        return news.token_ids[-1]

    def _end(self, reason: FinishReason, *, stop_reason: int | str | None = None) -> None:
        self.ended = reason
        # The other reasons are no answers but errors, which the call raises.
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._pending.finish_reason = reason.value
            self._pending.stop_reason = stop_reason
