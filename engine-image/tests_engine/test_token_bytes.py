"""The bytes of single tokens: their concatenation is the text, for each kind of tokenizer."""

from __future__ import annotations

import pytest
from modelfleet_engine.http.logprobs import shown_token
from modelfleet_engine.token_bytes import TokenBytes, byte_alphabet
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests_engine.tiny_model import BOS, EOS_ID, byte_tokenizer

TEXT = " Grüße 👋, 10 €"


def _with_byte_fallback() -> Tokenizer:
    """As Llama 2 and Gemma: a meta symbol for the space, bytes for what the vocabulary lacks."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "G", "r", "ü", "ß", "e"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _with_metaspace() -> Tokenizer:
    vocabulary = {letter: index for index, letter in enumerate(["▁", *sorted(set(TEXT) - {" "})])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    return tokenizer


@pytest.mark.parametrize("tokenizer", [byte_tokenizer(), _with_byte_fallback(), _with_metaspace()])
def test_the_bytes_of_all_tokens_are_the_text(tokenizer: Tokenizer) -> None:
    token_bytes = TokenBytes(tokenizer)

    pieces = [token_bytes.of(token_id) for token_id in tokenizer.encode(TEXT).ids]

    assert b"".join(pieces) == TEXT.encode()
    assert tokenizer.decode(tokenizer.encode(TEXT).ids) == TEXT


def test_only_a_byte_level_tokenizer_needs_no_decoder() -> None:
    tokenizers = (byte_tokenizer(), _with_byte_fallback(), _with_metaspace())

    assert [TokenBytes(tokenizer).make_the_text for tokenizer in tokenizers] == [True, False, False]


def test_the_alphabet_has_one_letter_for_each_byte() -> None:
    alphabet = byte_alphabet()

    assert sorted(alphabet.values()) == list(range(256))
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    assert alphabet["Ġ"] == ord(" ")


def test_an_added_token_counts_as_the_tokenizer_decodes_it() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("Ġa", special=False), AddedToken("｜x｜", special=False)])
    token_bytes = TokenBytes(tokenizer)

    for text in ("Ġa", "｜x｜"):
        token_id = tokenizer.token_to_id(text)
        assert token_id is not None
        assert token_bytes.of(token_id).decode() == tokenizer.decode([token_id])


def test_an_added_token_has_its_own_letters_and_only_a_special_one_is_skipped() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("a b", special=False)])
    token_bytes = TokenBytes(tokenizer)
    added = tokenizer.token_to_id("a b")
    assert added is not None

    assert (token_bytes.of(added), token_bytes.of(256)) == (b"a b", BOS.encode())
    assert [token_bytes.is_special(token_id) for token_id in (added, EOS_ID, 5)] == [False, True, False]


def test_an_id_without_a_token_has_no_bytes() -> None:
    assert TokenBytes(byte_tokenizer()).of(100_000) == b""


def test_tokens_of_a_tokenizer_without_a_decoder_are_text() -> None:
    assert TokenBytes(Tokenizer(models.WordLevel({"hello": 0}, unk_token="hello"))).of(0) == b"hello"


def test_what_is_no_text_is_shown_by_its_bytes() -> None:
    assert shown_token("ü".encode()) == "ü"
    assert shown_token(b" \xf0\x9f") == "\\x20\\xf0\\x9f"
    assert shown_token(b"\xe2", prefix="bytes:") == "bytes:\\xe2"
