"""What is generated for one call, on its way from the bridge to whoever answers. On the event loop's thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from modelfleet_engine.errors import GenerationCutError
from modelfleet_engine.request import FinishReason
from modelfleet_engine.step_plan import TokenLogprobs


@dataclass(slots=True, kw_only=True)
class ChoiceTokens:
    """What came for choice `index` since it was last asked: one entry per token in each list.

    `at_seconds` (monotonic) is when a token was generated. `logprobs` is empty unless asked for. `finish_reason` is
    set with the last token; a choice can also end without one.
    """

    index: int
    token_ids: list[int] = field(default_factory=list)
    at_seconds: list[float] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class Generation:
    """The tokens of one call's choices, as they come. Close it when done: what still runs is aborted."""

    def __init__(self, *, request_ids: tuple[str, ...], abort: Callable[[Iterable[str]], None]) -> None:
        self._abort = abort
        self._request_ids = request_ids
        self._news: dict[int, ChoiceTokens] = {}
        self._wakeup = asyncio.Event()
        self._error: GenerationCutError | None = None
        # Prompt tokens found in the prefix cache, by choice; known before the choice's first token.
        self.cached_tokens: dict[int, int] = {}
        # From the submission until the first choice was in a step; None before that.
        self.queue_seconds: float | None = None

    async def next_tokens(self) -> tuple[ChoiceTokens, ...]:
        """All that came since the last call, at least one choice's. Raises GenerationCutError if it was cut."""
        while not self._news:
            if self._error is not None:
                raise self._error
            self._wakeup.clear()
            await self._wakeup.wait()
        news, self._news = self._news, {}
        return tuple(news.values())

    def abort_choice(self, index: int) -> None:
        """Stops one choice: a stop string was found in its text."""
        self._abort((self._request_ids[index],))

    def close(self) -> None:
        """Aborts every choice that is not finished; harmless when all are."""
        self._abort(self._request_ids)

    def news_of(self, index: int) -> ChoiceTokens:
        """The bridge's side: where what comes for a choice is added; wakes who waits."""
        news = self._news.get(index)
        if news is None:
            news = self._news[index] = ChoiceTokens(index=index)
        self._wakeup.set()
        return news

    def fail(self, error: GenerationCutError) -> None:
        """The bridge's side: nothing more will come."""
        self._error = error
        self._wakeup.set()
