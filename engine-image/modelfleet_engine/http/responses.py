"""The JSON of answers: chat and plain completions, whole and in chunks, as OpenAI's clients expect them.

What vLLM adds (`stop_reason`, `token_ids`, `prompt_token_ids`, `prompt_logprobs`) stands where vLLM puts it.
A format is made for one call. Of a chunk only the changing part is made into JSON each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import orjson

from modelfleet_engine.http.call import Call, Prompt
from modelfleet_engine.http.choice import ChoiceDelta
from modelfleet_engine.http.logprobs import CompletionLogprobs, Json, chat_logprobs, prompt_logprobs
from modelfleet_engine.tokenizer import ModelTokenizer

Usage = Mapping[str, object]


class AnswerFormat(Protocol):
    """How one endpoint writes the answer of one call, in bytes of JSON."""

    def __init__(self, call: Call, tokenizer: ModelTokenizer) -> None: ...

    def opening_chunks(self) -> Sequence[bytes]:
        """Chunks before any text."""

    def chunk(self, delta: ChoiceDelta, usage: Usage) -> bytes:
        """A chunk with what is new of a choice; `usage` so far, for those who want it in each chunk."""

    def usage_chunk(self, usage: Usage) -> bytes:
        """The last chunk, if it was asked for: no choices."""

    def whole(self, choices: Sequence[ChoiceDelta], usage: Usage) -> bytes:
        """The answer in one piece."""


class _Format:
    """What both endpoints share."""

    chunk_object: str
    whole_object: str

    def __init__(self, call: Call, tokenizer: ModelTokenizer) -> None:
        self.call = call
        self.options = call.options
        self.tokenizer = tokenizer
        kind = self.chunk_object if call.options.is_stream else self.whole_object
        head = {"id": call.call_id, "object": kind, "created": call.created, "model": call.model_name}
        # Without its closing brace: what changes is appended.
        self._head = orjson.dumps(head)[:-1]
        self._chunk_tail = b'],"usage":null}' if call.options.include_usage else b"]}"

    def _chunk(self, choice: Json, usage: Usage | None, further: Json | None = None) -> bytes:
        start = self._head + b',"choices":[' + orjson.dumps(choice)
        if further is None and not self.options.continuous_usage_stats:
            return start + self._chunk_tail
        more = {**(further or {}), "usage": usage if self.options.continuous_usage_stats else None}
        return start + b"]," + orjson.dumps(more)[1:]

    def usage_chunk(self, usage: Usage) -> bytes:
        """The last chunk, if it was asked for: no choices."""
        return self._head + b',"choices":[],"usage":' + orjson.dumps(usage) + b"}"

    def _whole(self, choices: Iterable[Json], usage: Usage, further: Json) -> bytes:
        # One by one: the scores of many choices are large as objects, and making JSON of them stops every thread.
        items = b",".join([orjson.dumps(choice) for choice in choices])
        return self._head + b',"choices":[' + items + b"]," + orjson.dumps({"usage": usage, **further})[1:]

    def prompt_of(self, index: int) -> Prompt:
        """The prompt of a choice."""
        return self.call.prompts[index // self.call.choices_per_prompt]

    def scores_of_prompt(self, delta: ChoiceDelta) -> list[Json | None]:
        """vLLM's `prompt_logprobs` of a choice's prompt."""
        return prompt_logprobs(
            self.tokenizer,
            self.prompt_of(delta.index).token_ids,
            delta.prompt_logprobs,
            alternatives=self.options.prompt_logprobs or 0,
        )


class ChatFormat(_Format):
    """`/v1/chat/completions`."""

    chunk_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def opening_chunks(self) -> Sequence[bytes]:
        """Each choice first says who speaks."""
        delta = {"role": "assistant", "content": ""}
        tokens = self.call.prompt_tokens
        usage: Usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
        return [
            self._chunk(
                {"index": index, "delta": delta, "logprobs": None, "finish_reason": None},
                usage,
                {"prompt_token_ids": self.prompt_of(0).token_ids}
                if index == 0 and self.options.return_token_ids
                else None,
            )
            for index in range(len(self.call.requests))
        ]

    def chunk(self, delta: ChoiceDelta, usage: Usage) -> bytes:
        """A chunk with what is new of a choice."""
        choice: Json = {
            "index": delta.index,
            "delta": {"content": delta.text} if delta.text else {},
            "logprobs": self._logprobs(delta),
            "finish_reason": delta.finish_reason,
        }
        if delta.finish_reason is not None:
            choice["stop_reason"] = delta.stop_reason
        if self.options.return_token_ids:
            choice["token_ids"] = delta.token_ids
        return self._chunk(choice, usage)

    def whole(self, choices: Sequence[ChoiceDelta], usage: Usage) -> bytes:
        """The answer in one piece."""
        further: Json = {}
        if self.options.return_token_ids:
            further["prompt_token_ids"] = self.prompt_of(0).token_ids
        if self.options.prompt_logprobs is not None:
            further["prompt_logprobs"] = self.scores_of_prompt(choices[0])
        return self._whole(map(self._whole_choice, choices), usage, further)

    def _whole_choice(self, delta: ChoiceDelta) -> Json:
        choice: Json = {
            "index": delta.index,
            "message": {"role": "assistant", "content": delta.text, "refusal": None},
            "logprobs": self._logprobs(delta),
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }
        if self.options.return_token_ids:
            choice["token_ids"] = delta.token_ids
        return choice

    def _logprobs(self, delta: ChoiceDelta) -> Json | None:
        if self.options.logprobs is None:
            return None
        return chat_logprobs(self.tokenizer, delta.token_ids, delta.logprobs, alternatives=self.options.logprobs)


class CompletionFormat(_Format):
    """`/v1/completions`."""

    chunk_object = "text_completion"
    whole_object = "text_completion"

    def __init__(self, call: Call, tokenizer: ModelTokenizer) -> None:
        super().__init__(call, tokenizer)
        self._logprobs = [
            CompletionLogprobs(
                tokenizer,
                alternatives=call.options.logprobs or 0,
                skip_special_tokens=call.options.skip_special_tokens,
            )
            for _ in (call.requests if call.options.logprobs is not None else ())
        ]

    def opening_chunks(self) -> Sequence[bytes]:
        """None: plain text has no speaker."""
        return []

    def chunk(self, delta: ChoiceDelta, usage: Usage) -> bytes:
        """A chunk with what is new of a choice."""
        choice = self._choice(delta)
        if delta.finish_reason is not None:
            choice["stop_reason"] = delta.stop_reason
        return self._chunk(choice, usage)

    def whole(self, choices: Sequence[ChoiceDelta], usage: Usage) -> bytes:
        """The answer in one piece."""
        return self._whole(map(self._whole_choice, choices), usage, {})

    def _whole_choice(self, delta: ChoiceDelta) -> Json:
        choice = {**self._choice(delta), "stop_reason": delta.stop_reason}
        if self.options.prompt_logprobs is not None:
            choice["prompt_logprobs"] = self.scores_of_prompt(delta)
        return choice

    def _choice(self, delta: ChoiceDelta) -> Json:
        prompt = self.prompt_of(delta.index)
        is_echo = self.options.echo and delta.is_first
        choice: Json = {
            "index": delta.index,
            "text": self._echoed(prompt) + delta.text if is_echo else delta.text,
            "logprobs": None,
            "finish_reason": delta.finish_reason,
        }
        if self._logprobs:
            scored = (*prompt.token_ids, *delta.token_ids) if is_echo else delta.token_ids
            logprobs = (None, *delta.prompt_logprobs, *delta.logprobs) if is_echo else delta.logprobs
            choice["logprobs"] = self._logprobs[delta.index].columns(scored, logprobs)
        if self.options.return_token_ids:
            choice["token_ids"] = delta.token_ids
            if delta.is_first:
                choice["prompt_token_ids"] = prompt.token_ids
        return choice

    def _echoed(self, prompt: Prompt) -> str:
        """The prompt as it was written; token ids as text."""
        if prompt.text is not None:
            return prompt.text
        return self.tokenizer.decode(prompt.token_ids, skip_special_tokens=self.options.skip_special_tokens)
