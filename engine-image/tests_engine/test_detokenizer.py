"""Streaming text: characters stay whole, stop strings are found wherever token boundaries fall."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from modelfleet_engine.detokenizer import ByteDetokenizer, Detokenizer, StopStrings, WindowDetokenizer
from modelfleet_engine.token_bytes import TokenBytes
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE

from tests_engine.tiny_model import BOS, EOS_ID, byte_tokenizer, encode

TEXTS = [
    "plain text",
    "Grüße aus Köln, 10 € bitte",
    "日本語のテキスト",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈 flag",
    "a" * 200,
]
TOKENIZER = byte_tokenizer()


def _decode(token_ids: object) -> str:
    return str(TOKENIZER.decode(list(token_ids), skip_special_tokens=True))  # type: ignore[call-overload]


def _window(prompt_token_ids: Sequence[int] = ()) -> Detokenizer:
    return WindowDetokenizer(_decode, prompt_token_ids=prompt_token_ids)


def _by_bytes(_prompt_token_ids: Sequence[int] = ()) -> Detokenizer:
    return ByteDetokenizer(TokenBytes(TOKENIZER).of_text)


Make = Callable[..., Detokenizer]
both = pytest.mark.parametrize("make", [_window, _by_bytes])


@both
@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_make_the_whole_text_and_no_piece_splits_a_character(text: str, make: Make) -> None:
    detokenizer = make(encode("the prompt: ä"))

    pieces = [detokenizer.feed(token_id) for token_id in encode(text)]

    assert "".join(pieces) == text
    assert detokenizer.flush() == ""
    assert not any("\ufffd" in piece for piece in pieces)


@both
def test_a_character_comes_with_its_last_byte(make: Make) -> None:
    detokenizer = make()

    assert [detokenizer.feed(token_id) for token_id in encode("€1")] == ["", "", "€", "1"]


@both
def test_a_character_cut_at_the_end_is_flushed_as_what_a_decoder_makes_of_it(make: Make) -> None:
    tokens = encode("ab€")[:-1]
    detokenizer = make()

    pieces = [detokenizer.feed(token_id) for token_id in tokens]

    assert pieces == ["a", "b", "", ""]
    assert "".join(pieces) + detokenizer.flush() == _decode(tokens)


@both
def test_bytes_that_never_become_a_character_do_not_block_the_text(make: Make) -> None:
    continuation = encode("€")[1]
    detokenizer = make()

    pieces = [detokenizer.feed(continuation) for _ in range(30)] + [detokenizer.feed(encode("x")[0])]

    assert "".join(pieces) == "\ufffd" * 30 + "x"
    assert any(pieces[:10])


@both
def test_special_tokens_are_no_text(make: Make) -> None:
    detokenizer = make(TOKENIZER.encode(BOS).ids)

    assert detokenizer.feed(EOS_ID) == ""
    assert detokenizer.feed(encode("x")[0]) == "x"


@pytest.mark.parametrize("seed", range(20))
def test_any_tokens_make_what_the_tokenizer_decodes_them_to(seed: int) -> None:
    chance = random.Random(seed)
    tokens = [chance.randrange(TOKENIZER.get_vocab_size()) for _ in range(200)]
    detokenizer = _by_bytes()

    text = "".join(detokenizer.feed(token_id) for token_id in tokens) + detokenizer.flush()

    assert text == _decode(tokens)


def _byte_fallback_tokenizer() -> Tokenizer:
    """As SentencePiece's: words, and a token for each byte of what no word covers."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁the": 256, "a": 257, "▁": 258, "é": 259}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


@pytest.mark.parametrize("seed", range(20))
def test_characters_in_bytes_come_out_wherever_the_window_begins(seed: int) -> None:
    chance = random.Random(seed)
    tokenizer = _byte_fallback_tokenizer()
    characters = [tuple(character.encode()) for character in "€日🌊"]
    units = [*characters, *characters, (256,), (257,), (258,), (259,)]
    prompt, answer = ([token for _ in range(count) for token in chance.choice(units)] for count in (6, 60))
    detokenizer = WindowDetokenizer(tokenizer.decode, prompt_token_ids=prompt)

    text = "".join(map(detokenizer.feed, answer)) + detokenizer.flush()

    assert tokenizer.decode(prompt) + text == tokenizer.decode(prompt + answer)


def test_the_cost_of_a_token_does_not_grow_with_the_text() -> None:
    lengths: list[int] = []

    def decode(token_ids: object) -> str:
        lengths.append(len(token_ids))  # type: ignore[arg-type]
        return _decode(token_ids)

    detokenizer = WindowDetokenizer(decode)
    for token_id in encode("long " * 400):
        detokenizer.feed(token_id)

    assert max(lengths) <= 16


def test_a_stop_string_is_cut_out_with_all_that_follows() -> None:
    stops = StopStrings(["STOP"])

    assert stops.feed("hello STOP world") == ("hello ", True)


def test_a_stop_string_is_kept_where_that_is_wanted_and_named() -> None:
    stops = StopStrings(["and", "STOP"], include_stop=True)

    assert (stops.feed("hello STOP world"), stops.found) == (("hello STOP", True), "STOP")


@both
def test_several_tokens_at_once_make_the_same_text(make: Make) -> None:
    tokens = encode("10 € für 👩‍👩‍👧‍👦")
    one_by_one, at_once = make(), make()

    pieces = "".join(one_by_one.feed(token_id) for token_id in tokens)

    assert at_once.feed_all(tokens[:9]) + at_once.feed_all(tokens[9:]) == pieces


def test_a_stop_string_is_found_across_pieces_and_never_leaks() -> None:
    stops = StopStrings(["<end>"])

    assert [stops.feed(piece) for piece in ["a<", "e", "nd", ">b"]] == [
        ("a", False),
        ("", False),
        ("", False),
        ("", True),
    ]


def test_text_that_only_looked_like_a_stop_string_comes_out_later() -> None:
    stops = StopStrings(["<end>"])

    assert [stops.feed(piece) for piece in ["a<en", "t", "<e"]] == [("a", False), ("<ent", False), ("", False)]
    assert stops.flush() == "<e"
    assert stops.flush() == ""


def test_of_text_that_may_not_stop_only_a_beginning_is_held_back() -> None:
    stops = StopStrings(["<end>"])

    assert [stops.skip("a<end>b<e"), stops.skip("n")] == ["a<end>b", ""]
    assert stops.feed("d>c") == ("", True)


def test_the_earliest_of_several_stop_strings_counts() -> None:
    assert StopStrings(["c", "bc"]).feed("abc") == ("a", True)


@pytest.mark.parametrize("seed", range(20))
def test_any_split_of_a_text_gives_the_same_result(seed: int) -> None:
    chance = random.Random(seed)
    text = "".join(chance.choice("ab") for _ in range(40))
    stop_strings = ["aab", "bbbb", "abab"]
    stops = StopStrings(stop_strings)
    out = ""
    rest = text
    is_stopped = False
    while rest and not is_stopped:
        size = chance.randint(1, 5)
        piece, is_stopped = stops.feed(rest[:size])
        out, rest = out + piece, rest[size:]
    if not is_stopped:
        out += stops.flush()

    # The first stop string to be complete ends the text, however it is split.
    ends = [position + len(stop) for stop in stop_strings if (position := text.find(stop)) >= 0]
    assert is_stopped == bool(ends)
    assert text.startswith(out)
    assert not any(stop in out for stop in stop_strings)
    if not ends:
        assert out == text
