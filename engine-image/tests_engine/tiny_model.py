"""A model directory without weights: a byte-level tokenizer with a chat template, for the fake device.

Token ids 0..255 are single bytes in the tokenizer's own order, then come BOS and two end tokens.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

BOS = "<|start|>"
EOS = "<|end|>"
END_OF_TEXT = "<|endoftext|>"
EOS_ID = 257
END_OF_TEXT_ID = 258
VOCAB_SIZE = 259

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('role ' + message['role'] + ' is unknown') }}{% endif %}"
    "{% if message['content'] == 'refuse me' %}{{ raise_exception('as you wish') }}{% endif %}"
    "{{ bos_token + message['role'] + '\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token + 'assistant\\n' }}{% endif %}"
)


def byte_tokenizer() -> Tokenizer:
    """One token per byte, plus the three special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in (BOS, EOS, END_OF_TEXT)])
    return tokenizer


def write_tiny_model(directory: Path) -> Path:
    """Writes tokenizer and configuration files; no weights."""
    directory.mkdir(parents=True, exist_ok=True)
    byte_tokenizer().save(str(directory / "tokenizer.json"))
    files: dict[str, object] = {
        "tokenizer_config.json": {
            "bos_token": BOS,
            "eos_token": {"content": EOS, "special": True},
            "chat_template": CHAT_TEMPLATE,
        },
        "config.json": {"eos_token_id": EOS_ID},
        "generation_config.json": {"eos_token_id": [EOS_ID, END_OF_TEXT_ID]},
    }
    for name, value in files.items():
        (directory / name).write_text(json.dumps(value), encoding="utf-8")
    return directory


def encode(text: str) -> tuple[int, ...]:
    """Token ids of plain text."""
    return tuple(byte_tokenizer().encode(text, add_special_tokens=False).ids)
