"""Log probabilities as JSON, in the three shapes clients know: OpenAI's of chats, OpenAI's of completions, vLLM's.

A token that is a part of a character has no text of its own: it is shown as OpenAI does, byte by byte
(`\\\\xf0\\\\x9f`), and its exact bytes are there where the shape has a place for them.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from modelfleet_engine.step_plan import TokenLogprobs
from modelfleet_engine.tokenizer import ModelTokenizer

Json = dict[str, object]

# JSON has no minus infinity; OpenAI and vLLM write this number.
SMALLEST_LOGPROB = -9999.0


def shown_token(data: bytes, *, prefix: str = "") -> str:
    """A token's text; where it is no whole text, `prefix` and its bytes escaped."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return prefix + "".join(f"\\x{byte:02x}" for byte in data)


def chat_logprobs(
    tokenizer: ModelTokenizer, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs], *, alternatives: int
) -> Json:
    """OpenAI's `logprobs` of a chat choice, for the given tokens."""
    content: list[Json] = []
    for token_id, entry in zip(token_ids, logprobs, strict=True):
        top = zip(entry.top_token_ids[:alternatives], entry.top_logprobs, strict=False)
        content.append(
            {
                **_chat_token(tokenizer, token_id, entry.logprob),
                "top_logprobs": [_chat_token(tokenizer, other, logprob) for other, logprob in top],
            }
        )
    return {"content": content, "refusal": None}


def _chat_token(tokenizer: ModelTokenizer, token_id: int, logprob: float) -> Json:
    data = tokenizer.token_bytes(token_id)
    return {"token": shown_token(data), "logprob": max(logprob, SMALLEST_LOGPROB), "bytes": list(data)}


class CompletionLogprobs:
    """OpenAI's `logprobs` of a completion choice: four columns, of which `text_offset` counts through the chunks.

    Offsets are characters from the beginning of the choice's own text, the echoed prompt included.
    """

    def __init__(self, tokenizer: ModelTokenizer, *, alternatives: int, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._alternatives = alternatives
        self._skip_special_tokens = skip_special_tokens
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0

    def columns(self, token_ids: Iterable[int], logprobs: Iterable[TokenLogprobs | None]) -> Json:
        """The columns of these tokens, which follow those before. None: the prompt's first token, which has none."""
        tokens: list[str] = []
        token_logprobs: list[float | None] = []
        top_logprobs: list[dict[str, float] | None] = []
        text_offset: list[int] = []
        for token_id, entry in zip(token_ids, logprobs, strict=True):
            tokens.append(self._shown(token_id))
            token_logprobs.append(None if entry is None else max(entry.logprob, SMALLEST_LOGPROB))
            top_logprobs.append(None if entry is None else self._top(token_id, entry))
            text_offset.append(self._offset)
            self._advance(token_id)
        return {
            "tokens": tokens,
            "token_logprobs": token_logprobs,
            "top_logprobs": top_logprobs if self._alternatives else None,
            "text_offset": text_offset,
        }

    def _shown(self, token_id: int) -> str:
        return shown_token(self._tokenizer.token_bytes(token_id), prefix="bytes:")

    def _top(self, token_id: int, entry: TokenLogprobs) -> dict[str, float]:
        """The most likely tokens, and the token itself if it is not among them."""
        top: dict[str, float] = {}
        pairs = zip(entry.top_token_ids[: self._alternatives], entry.top_logprobs, strict=False)
        for other, logprob in (*pairs, (token_id, entry.logprob)):
            top.setdefault(self._shown(other), max(logprob, SMALLEST_LOGPROB))
        return top

    def _advance(self, token_id: int) -> None:
        if not (self._skip_special_tokens and self._tokenizer.is_special(token_id)):
            self._offset += len(self._characters.decode(self._tokenizer.token_bytes(token_id)))


def prompt_logprobs(
    tokenizer: ModelTokenizer, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs], *, alternatives: int
) -> list[Json | None]:
    """vLLM's `prompt_logprobs`: for each prompt token the token itself and the most likely ones, by token id.

    `logprobs` are those of token 1 and on; token 0 has none.
    """
    positions: list[Json | None] = [None]
    for token_id, entry in zip(token_ids[1:], logprobs, strict=True):
        ranked = [(token_id, entry.logprob, entry.rank)]
        ranked += [
            (other, entry.top_logprobs[index], index + 1)
            for index, other in enumerate(entry.top_token_ids[:alternatives])
            if other != token_id
        ]
        positions.append(
            {
                str(other): {
                    "logprob": max(logprob, SMALLEST_LOGPROB),
                    "rank": rank,
                    "decoded_token": shown_token(tokenizer.token_bytes(other)),
                }
                for other, logprob, rank in ranked
            }
        )
    return positions
