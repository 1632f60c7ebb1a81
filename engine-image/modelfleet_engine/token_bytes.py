"""The bytes of single tokens: a token can be a part of a character, which no text shows.

Three kinds of tokenizers: byte-level BPE (GPT-2's alphabet of printable characters for bytes), SentencePiece with
byte fallback (`<0xE2>`, and a meta symbol for the space), and the rest, whose tokens are text.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: itself where it is printable, else the next character from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}


class TokenBytes:
    """Looks up the bytes of token ids; each is worked out once, two threads at worst do it twice."""

    def __init__(self, tokenizer: RustTokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = tokenizer.get_added_tokens_decoder()
        decoders = _decoders(tokenizer)
        self._is_byte_level = any(decoder.get("type") == "ByteLevel" for decoder in decoders)
        # Whether a text is exactly the bytes of its tokens, joined: then no decoder is needed.
        self.make_the_text = self._is_byte_level and len(decoders) == 1
        self._has_byte_fallback = any(decoder.get("type") == "ByteFallback" for decoder in decoders)
        self._spaces = [symbol for decoder in decoders if (symbol := _space_symbol(decoder))]
        self._alphabet = byte_alphabet()
        self._known: dict[int, bytes] = {}

    def of(self, token_id: int) -> bytes:
        """The bytes this token adds to a text; of a special token its name; empty for an id without a token."""
        found = self._known.get(token_id)
        if found is None:
            found = self._known[token_id] = self._find(token_id)
        return found

    def of_text(self, token_id: int) -> bytes:
        """As `of`, but a special token adds nothing."""
        return b"" if self.is_special(token_id) else self.of(token_id)

    def is_special(self, token_id: int) -> bool:
        """Whether this is one of the tokens that decoding skips."""
        return token_id in self._added and bool(self._added[token_id].special)

    def _find(self, token_id: int) -> bytes:
        piece = self._tokenizer.id_to_token(token_id)
        if piece is None:
            return b""
        if self._is_byte_level and all(letter in self._alphabet for letter in piece):
            return bytes(self._alphabet[letter] for letter in piece)
        if self._has_byte_fallback and (match := _BYTE_TOKEN.fullmatch(piece)):
            return bytes((int(match[1], 16),))
        for symbol in self._spaces:
            piece = piece.replace(symbol, " ")
        return str(piece).encode()


def _decoders(tokenizer: RustTokenizer) -> list[dict[str, Any]]:
    """The steps of the tokenizer's decoder, in order, as its file describes them."""
    if tokenizer.decoder is None:
        return []
    # The library's only way to ask what a decoder is: its pickled state is that part of tokenizer.json.
    state = json.loads(tokenizer.decoder.__getstate__())
    return list(state["decoders"]) if state["type"] == "Sequence" else [state]


def _space_symbol(decoder: dict[str, Any]) -> str | None:
    """What stands for a space in tokens, if this step puts the space back."""
    if decoder["type"] == "Metaspace":
        return str(decoder["replacement"])
    if decoder["type"] == "Replace" and decoder.get("content") == " ":
        symbol = decoder["pattern"].get("String")
        return symbol if isinstance(symbol, str) else None
    return None
