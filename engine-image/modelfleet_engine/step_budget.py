"""How many tokens one step may compute, and how prompts share what decodes leave of it. Pure.

Two bounds: the token budget, and, while others decode, the time that one step may take so that their next tokens
come within the target. The time is predicted by t = a + b*sequences + c*prefill_tokens + d*kv_tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from modelfleet_api.protocol import StepTime

from modelfleet_engine.step_time import predict_seconds

# The most of a budget that one prompt gets while others want some. At a quarter of the usual 512 tokens for the
# others, a short prompt behind a long one begins at once and is done in a step or two; the long one takes a third more
# steps. Equal halves would double the time to the first token of the first of several long prompts.
PROMPT_SHARE = 0.75
# What prompts get in each step whatever the target says, or they would never end: one block of the usual size.
MINIMUM_PREFILL_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTarget:
    """Keeps a step within `seconds`, as far as the learned time tells."""

    seconds: float
    step_time: StepTime


class StepBudget:
    """What is left of one step's budget. Decodes are taken first, then `limit_time` once, then prompts are granted."""

    __slots__ = ("_granted_tokens", "_seconds", "_step_time", "tokens")

    def __init__(self, *, tokens: int) -> None:
        self.tokens = tokens
        self._granted_tokens = 0
        self._seconds = math.inf
        self._step_time: StepTime | None = None

    def limit_time(self, target: StepTarget, *, decodes: int, kv_tokens: int) -> None:
        """From now on grants keep the step within the target; `kv_tokens` is what its decodes read."""
        self._step_time = target.step_time
        used = predict_seconds(target.step_time, sequences=decodes, prefill_tokens=0, kv_tokens=kv_tokens)
        self._seconds = target.seconds - used

    @property
    def is_open(self) -> bool:
        """Whether a prompt could get a token."""
        return self._affordable(self.tokens, seconds=self._seconds) > 0

    def share(self) -> int:
        """The most that one prompt may take of what is left while others want some of it."""
        return max(1, int(PROMPT_SHARE * self._affordable(self.tokens, seconds=self._seconds)))

    def grant(self, *, wanted: int, context_tokens: int) -> int:
        """Takes up to `wanted` tokens for a prompt with `context_tokens` computed; 0: not in this step."""
        row_seconds = 0.0
        if self._step_time is not None:
            row_seconds = self._step_time.per_sequence_seconds + self._step_time.per_kv_token_seconds * context_tokens
        granted = self._take(wanted, seconds=self._seconds - row_seconds)
        if granted:
            self._seconds -= row_seconds
        return granted

    def extend(self, *, wanted: int) -> int:
        """Takes up to `wanted` tokens more for a prompt that was granted some."""
        return self._take(wanted, seconds=self._seconds)

    def _take(self, wanted: int, *, seconds: float) -> int:
        granted = self._affordable(min(wanted, self.tokens), seconds=seconds)
        self.tokens -= granted
        self._granted_tokens += granted
        if self._step_time is not None:
            self._seconds -= granted * self._token_seconds(self._step_time)
        return granted

    def _affordable(self, tokens: int, *, seconds: float) -> int:
        """How many of `tokens` prompt tokens fit into `seconds`; the minimum of a step is always granted."""
        if self._step_time is None:
            return tokens
        token_seconds = self._token_seconds(self._step_time)
        # A lost target first: a token may have been learned to cost nothing.
        if seconds <= 0:
            fitting = 0
        elif token_seconds * tokens <= seconds:
            fitting = tokens
        else:
            fitting = int(seconds / token_seconds)
        return min(tokens, max(fitting, MINIMUM_PREFILL_TOKENS - self._granted_tokens))

    @staticmethod
    def _token_seconds(step_time: StepTime) -> float:
        """A prompt token is computed, and read by those after it."""
        return step_time.per_prefill_token_seconds + step_time.per_kv_token_seconds
