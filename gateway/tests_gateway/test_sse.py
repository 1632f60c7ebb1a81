"""Event streams in transit: every cut of the bytes gives the same stream."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelfleet_gateway.sse import MAX_HELD_BYTES, SseRelay

_EVENTS = b'data: {"a":1}\n\ndata: {"text":": modelfleet-usage {}"}\n\ndata: {"b":"data: [DONE]"}\n\n'
_USAGE = b': modelfleet-usage {"prompt_tokens":5}\n\n'
_STREAM = _EVENTS + b"data: [DONE]\n\n" + _USAGE


def _relayed(chunks: list[bytes]) -> tuple[bytes, SseRelay]:
    relay = SseRelay()
    passed = b"".join(relay.feed(chunk) for chunk in chunks)
    return passed + relay.finish(), relay


@given(st.lists(st.integers(min_value=0, max_value=len(_STREAM)), max_size=8))
def test_a_stream_cut_anywhere_passes_whole_and_without_the_usage_comment(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(_STREAM)]
    passed, relay = _relayed([_STREAM[a:b] for a, b in itertools.pairwise(places) if b > a])
    assert passed == _EVENTS + b"data: [DONE]\n\n"
    assert relay.usage == {"prompt_tokens": 5}
    assert relay.events == 3
    assert relay.is_ended


@given(st.lists(st.integers(min_value=0, max_value=60), max_size=8), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_all_three_line_ends_of_the_standard_are_understood(cuts: list[int], end: bytes) -> None:
    stream = (b"event: x\ndata: {}\n\n: comment\n\ndata: [DONE]\n\n").replace(b"\n", end)
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    passed, relay = _relayed([stream[a:b] for a, b in itertools.pairwise(places) if b > a])
    assert passed == stream
    assert relay.is_ended


def test_half_an_event_waits_for_its_other_half_and_is_dropped_if_there_is_none() -> None:
    relay = SseRelay()
    assert relay.feed(b'data: {"a":1}\n\ndata: {"b"') == b'data: {"a":1}\n\n'
    assert relay.feed(b":2}\n") == b""
    assert relay.feed(b'\ndata: {"c"') == b'data: {"b":2}\n\n'
    assert relay.finish() == b""
    assert not relay.is_ended


def test_words_of_an_answer_do_not_end_it() -> None:
    _, relay = _relayed([b'data: {"content":"data: [DONE]"}\n\n', b'data: {"content":"\\"error\\": event: error"}\n\n'])
    assert not relay.is_ended


@pytest.mark.parametrize(
    "end", [b'data: {"error":{"message":"x"}}\n\n', b"event: error\ndata: {}\n\n", b"data: [DONE]"]
)
def test_an_engine_ends_its_answer_with_done_or_an_error(end: bytes) -> None:
    passed, relay = _relayed([b"data: {}\n\n", end])
    assert passed == b"data: {}\n\n" + end
    assert relay.is_ended


def test_an_endless_event_is_not_kept_in_memory() -> None:
    relay = SseRelay()
    passed = sum(len(relay.feed(b"x" * 65536)) for _ in range(64))
    assert passed >= 64 * 65536 - MAX_HELD_BYTES - 65536


def test_a_usage_comment_that_is_no_object_is_taken_out_all_the_same() -> None:
    passed, relay = _relayed([b"data: {}\n\n: modelfleet-usage nonsense\n\n"])
    assert passed == b"data: {}\n\n"
    assert relay.usage is None
