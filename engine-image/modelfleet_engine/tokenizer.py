"""Text to token ids and back, by the model directory's own `tokenizer.json` and chat template.

Calls may come from any thread: encoding releases the GIL and belongs off the event loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from modelfleet_engine.chat_template import ChatTemplate
from modelfleet_engine.detokenizer import ByteDetokenizer, Detokenizer, WindowDetokenizer
from modelfleet_engine.errors import ModelError, RequestError
from modelfleet_engine.model_files import SamplingDefaults, read_model_files
from modelfleet_engine.token_bytes import TokenBytes


class ModelTokenizer:
    """The tokenizer of one model, with its template, its end tokens and its sampling defaults."""

    def __init__(self, directory: Path) -> None:
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise ModelError(f"{directory} has no tokenizer.json")
        try:
            self._tokenizer = RustTokenizer.from_file(str(path))
        # The library raises bare Exception for every malformed file.
        except Exception as error:
            raise ModelError(f"{path} is not a tokenizer: {error}") from error
        # The prompt is what it is: a limit or padding stored in the file would change it silently.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        # Characters; a text of n tokens is at most n times as long.
        self.longest_token_characters = max(map(len, vocabulary), default=1)
        self._token_bytes = TokenBytes(self._tokenizer)
        files = read_model_files(directory)
        self.defaults: SamplingDefaults = files.defaults
        eos_text = files.special_tokens.get("eos_token")
        eos_id = None if eos_text is None else self._tokenizer.token_to_id(eos_text)
        self.eos_token_ids = files.eos_token_ids | (frozenset() if eos_id is None else {eos_id})
        self._template = (
            None
            if files.chat_template is None
            else ChatTemplate(files.chat_template, special_tokens=files.special_tokens)
        )

    @property
    def vocab_size(self) -> int:
        """Ids the tokenizer knows, added tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Token ids of plain text, with the special tokens the model's tokenizer adds (such as BOS)."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        add_special_tokens: bool = False,
        template_arguments: Mapping[str, Any] | None = None,
    ) -> tuple[int, ...]:
        """Token ids of a conversation; the template writes every special token itself.

        Raises:
            RequestError: the model has no chat template, or it refuses these messages.
        """
        if self._template is None:
            raise RequestError(
                "This model has no chat template; use /v1/completions.",
                param="messages",
                code="no_chat_template",
            )
        text = self._template.render(
            messages, add_generation_prompt=add_generation_prompt, arguments=template_arguments or {}
        )
        return self.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of the tokens, without special tokens unless they are wanted."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def token_bytes(self, token_id: int) -> bytes:
        """What one token adds to a text: maybe a part of a character; of a special token its name."""
        return self._token_bytes.of(token_id)

    def is_special(self, token_id: int) -> bool:
        """Whether the token is left out of texts."""
        return self._token_bytes.is_special(token_id)

    def token_string(self, token_id: int) -> str:
        """A token as the vocabulary spells it (`Ġhello`, `<0xE2>`); empty for an id without a token."""
        return self._tokenizer.id_to_token(token_id) or ""

    def detokenizer(self, prompt_token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> Detokenizer:
        """A fresh incremental decoder for what follows this prompt."""
        if self._token_bytes.make_the_text:
            return ByteDetokenizer(self._token_bytes.of_text if skip_special_tokens else self._token_bytes.of)
        decode = partial(self.decode, skip_special_tokens=skip_special_tokens)
        return WindowDetokenizer(decode, prompt_token_ids=prompt_token_ids)
