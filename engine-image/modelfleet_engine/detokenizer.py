"""Token ids to text as they come: UTF-8 is never split, stop strings are found across token boundaries.

Pure but for the tokenizer's `decode`, which is an argument.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

# What `decode` writes for bytes that are not (yet) a whole character.
_INCOMPLETE = "\ufffd"
# Context a decoder needs to place spaces right; vLLM uses 5.
_WINDOW_TOKENS = 6
# A character has at most 4 bytes, hence 4 tokens; beyond that the bytes are wrong and will stay so.
_MAX_HELD_TOKENS = 8
# So many of a character's tokens may be before a window that begins inside it.
_MAX_SPLIT_TOKENS = 3


class Detokenizer(Protocol):
    """Turns tokens into text as they come; what it gave out never changes."""

    def feed(self, token_id: int) -> str:
        """The text that became certain with this token; empty while a character is incomplete."""

    def feed_all(self, token_ids: Sequence[int]) -> str:
        """`feed` of each token in turn, in one piece."""

    def flush(self) -> str:
        """What is still held back, at the end: a replacement character for a cut one."""


class ByteDetokenizer:
    """For tokenizers whose texts are the bytes of the tokens, joined: a third of the window's cost, and no guess."""

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_id: int) -> str:
        """The text that became certain with this token; empty while a character is incomplete."""
        return self._decoder.decode(self._bytes_of(token_id))

    def feed_all(self, token_ids: Sequence[int]) -> str:
        """`feed` of each token in turn, in one piece."""
        return self._decoder.decode(b"".join(map(self._bytes_of, token_ids)))

    def flush(self) -> str:
        """A replacement character for a cut one, at the end."""
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For any tokenizer: decodes a growing token list at constant cost per token, by a small window of context."""

    def __init__(self, decode: Callable[[Sequence[int]], str], *, prompt_token_ids: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window, self._emitted_text = self._end_of(prompt_token_ids, _WINDOW_TOKENS)
        # Tokens of the window whose text is out already.
        self._emitted = len(self._window)

    def feed(self, token_id: int) -> str:
        """The text that became certain with this token; empty while a character is incomplete."""
        self._window.append(token_id)
        text = self._decode(self._window)
        held = len(self._window) - self._emitted
        if text.endswith(_INCOMPLETE) and held <= _MAX_HELD_TOKENS:
            return ""
        return self._emit(text)

    def feed_all(self, token_ids: Sequence[int]) -> str:
        """`feed` of each token in turn, in one piece."""
        return "".join([self.feed(token_id) for token_id in token_ids])

    def flush(self) -> str:
        """What is still held back, at the end: possibly a replacement character for a cut one."""
        if self._emitted == len(self._window):
            return ""
        return self._emit(self._decode(self._window))

    def _emit(self, text: str) -> str:
        new = text[len(self._emitted_text) :]
        # The next window starts with the tokens just emitted, at least a few of them, as context.
        context = max(_WINDOW_TOKENS, len(self._window) - self._emitted)
        if len(self._window) > 2 * context:
            self._window, self._emitted_text = self._end_of(self._window, context)
        else:
            self._emitted_text = text
        self._emitted = len(self._window)
        return new

    def _end_of(self, token_ids: Sequence[int], count: int) -> tuple[list[int], str]:
        """The last `count` tokens and their text, or a few more so that they do not begin inside a character.

        Byte fallback makes replacement characters of a whole run of bytes if only its first is half a character.
        """
        for size in range(count, count + _MAX_SPLIT_TOKENS + 1):
            window = list(token_ids[-size:])
            text = self._decode(window) if window else ""
            if not text.startswith(_INCOMPLETE):
                break
        return window, text


class StopStrings:
    """Finds the first stop string in streamed text and never lets a part of one out.

    Text that could be the beginning of a stop string is held back until it is certain that it is not.
    """

    def __init__(self, stops: Sequence[str], *, include_stop: bool = False) -> None:
        self._stops = tuple(stops)
        self._include_stop = include_stop
        self._held = ""
        # The stop string that ended the text.
        self.found: str | None = None

    def feed(self, text: str) -> tuple[str, bool]:
        """The text that may go out now, and whether a stop string was found (then that is the last of it)."""
        if not self._stops:
            return text, False
        buffer = self._held + text
        found = [(position, stop) for stop in self._stops if (position := buffer.find(stop)) >= 0]
        if found:
            position, self.found = min(found)
            self._held = ""
            return buffer[: position + (len(self.found) if self._include_stop else 0)], True
        return self._hold(buffer), False

    def skip(self, text: str) -> str:
        """As `feed` of text that cannot end the answer: only a stop string that reaches beyond it counts."""
        return self._hold(self._held + text)

    def flush(self) -> str:
        """What was held back, at the end."""
        held, self._held = self._held, ""
        return held

    def _hold(self, buffer: str) -> str:
        """Keeps the end of the text that may be the beginning of a stop string; answers the rest."""
        keep = max((_partial_match(buffer, stop) for stop in self._stops), default=0)
        self._held = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep]


def _partial_match(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a true beginning of `stop`."""
    # From one occurrence of its first character to the next: trying every length took milliseconds for long stops.
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0:
        if stop.startswith(text[start:]):
            return len(text) - start
        start = text.find(stop[0], start + 1)
    return 0
