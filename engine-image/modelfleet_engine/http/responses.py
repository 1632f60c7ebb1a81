"""The JSON of answers: chat and plain completions, whole and in chunks, as OpenAI's clients expect them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from modelfleet_engine.http.calls import Call
from modelfleet_engine.http.generation import TextDelta

Json = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedChoice:
    """A whole choice."""

    index: int
    text: str
    finish_reason: str


class AnswerFormat(Protocol):
    """How one endpoint writes its answers."""

    def opening_chunks(self, call: Call) -> Sequence[Json]:
        """Chunks before any text."""

    def chunk(self, call: Call, delta: TextDelta) -> Json:
        """A chunk with new text, or the end of a choice."""

    def usage_chunk(self, call: Call, usage: Mapping[str, object]) -> Json:
        """The last chunk, if it was asked for: no choices."""

    def whole(self, call: Call, choices: Sequence[FinishedChoice], usage: Mapping[str, object]) -> Json:
        """The answer in one piece."""


class _Format:
    """What both endpoints share."""

    chunk_object: str
    whole_object: str

    def _frame(self, call: Call, *, kind: str, choices: list[Json]) -> Json:
        frame: Json = {
            "id": call.call_id,
            "object": kind,
            "created": call.created,
            "model": call.model_name,
            "choices": choices,
        }
        if call.is_stream and call.include_usage:
            frame["usage"] = None
        return frame

    def usage_chunk(self, call: Call, usage: Mapping[str, object]) -> Json:
        """The last chunk, if it was asked for: no choices."""
        return {**self._frame(call, kind=self.chunk_object, choices=[]), "usage": usage}


class ChatFormat(_Format):
    """`/v1/chat/completions`."""

    chunk_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def opening_chunks(self, call: Call) -> Sequence[Json]:
        """Each choice first says who speaks."""
        delta = {"role": "assistant", "content": ""}
        return [
            self._frame(
                call,
                kind=self.chunk_object,
                choices=[{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}],
            )
            for index in range(len(call.requests))
        ]

    def chunk(self, call: Call, delta: TextDelta) -> Json:
        """A chunk with new text, or the end of a choice."""
        content = {"content": delta.text} if delta.text else {}
        choice: Json = {
            "index": delta.index,
            "delta": content,
            "logprobs": None,
            "finish_reason": delta.finish_reason,
        }
        return self._frame(call, kind=self.chunk_object, choices=[choice])

    def whole(self, call: Call, choices: Sequence[FinishedChoice], usage: Mapping[str, object]) -> Json:
        """The answer in one piece."""
        items: list[Json] = [
            {
                "index": choice.index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": None,
                "finish_reason": choice.finish_reason,
            }
            for choice in choices
        ]
        return {**self._frame(call, kind=self.whole_object, choices=items), "usage": usage}


class CompletionFormat(_Format):
    """`/v1/completions`."""

    chunk_object = "text_completion"
    whole_object = "text_completion"

    def opening_chunks(self, call: Call) -> Sequence[Json]:
        """None: plain text has no speaker."""
        return []

    def chunk(self, call: Call, delta: TextDelta) -> Json:
        """A chunk with new text, or the end of a choice."""
        choice = _completion_choice(delta.index, delta.text, delta.finish_reason)
        return self._frame(call, kind=self.chunk_object, choices=[choice])

    def whole(self, call: Call, choices: Sequence[FinishedChoice], usage: Mapping[str, object]) -> Json:
        """The answer in one piece."""
        items = [_completion_choice(choice.index, choice.text, choice.finish_reason) for choice in choices]
        return {**self._frame(call, kind=self.whole_object, choices=items), "usage": usage}


def _completion_choice(index: int, text: str, finish_reason: str | None) -> Json:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}
