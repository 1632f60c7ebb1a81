"""How much each pod has to do, as far as the gateway can know."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelfleet_api.protocol import StepTime
from modelfleet_gateway.work import DEFAULT_DECODE_WEIGHT, STALE_AFTER_SECONDS, PodBook, PodView

from tests_gateway.routing_world import load, model_id

LLAMA = model_id("llama.team-a")
# A token of the answer is worth two of the prompt.
STEP_TIME = StepTime(
    base_seconds=0.01,
    per_sequence_seconds=0.0002,
    per_prefill_token_seconds=0.0001,
    per_kv_token_seconds=0.0,
    observed_steps=1000,
)


def began(book: PodBook, request_id: str, *, uid: str = "a", prefill: float = 100.0, output: float = 10.0) -> None:
    book.began(uid, request_id=request_id, prefill_tokens=prefill, output_tokens=output, now=0.0)


def test_a_pod_of_which_nothing_is_known_is_idle_and_stale() -> None:
    book = PodBook(unknown_max_in_flight=7)
    assert book.view("a", 0.0) == PodView(0, 0.0, 0.0, 7, 0, True)


def test_what_was_sent_counts_at_once_by_its_prompt_and_its_answer() -> None:
    book = PodBook()
    began(book, "1")
    began(book, "2")
    view = book.view("a", 0.0)
    assert (view.in_flight, view.work_tokens) == (2, 200.0 + DEFAULT_DECODE_WEIGHT * 20.0)
    assert book.in_flight("a") == 2


def test_the_first_token_says_that_the_prompt_is_done() -> None:
    book = PodBook()
    began(book, "1")
    book.first_token("a", "1", 1.0)
    book.first_token("a", "1", 1.0)
    view = book.view("a", 1.0)
    assert (view.in_flight, view.work_tokens) == (1, DEFAULT_DECODE_WEIGHT * 10.0)


def test_an_ended_request_leaves_nothing_even_if_its_end_is_told_twice() -> None:
    book = PodBook()
    began(book, "1", prefill=0.1, output=0.2)
    began(book, "2", prefill=0.7, output=0.1)
    for request_id in ("1", "2", "2", "never sent"):
        book.ended("a", request_id, 1.0)
    book.ended("never seen", "1", 1.0)
    assert book.view("a", 1.0)[:2] == (0, 0.0)


def test_a_retry_counts_on_the_pod_it_went_to() -> None:
    book = PodBook()
    began(book, "1", uid="a")
    book.ended("a", "1", 0.5)
    began(book, "1", uid="b")
    assert [book.in_flight(uid) for uid in ("a", "b")] == [0, 1]


def test_a_request_sent_twice_to_one_pod_counts_once() -> None:
    book = PodBook()
    began(book, "1")
    began(book, "1", prefill=50.0)
    assert book.view("a", 0.0)[:2] == (1, 50.0 + DEFAULT_DECODE_WEIGHT * 10.0)


def test_the_engine_says_how_much_it_takes_and_how_full_it_is() -> None:
    book = PodBook()
    book.observed("a", load(running=0, kv_used=250, queued_tokens=30), 1.0)
    assert book.view("a", 2.0) == PodView(0, 0.0, 0.25, 32, 30, False)


def test_the_engines_step_time_says_what_a_token_of_an_answer_is_worth() -> None:
    book = PodBook()
    began(book, "1")
    book.observed("a", load(running=1, step_time=STEP_TIME), 1.0)
    assert book.view("a", 1.0).work_tokens == 100.0 + 2.0 * 10.0


def test_a_step_time_learned_from_few_steps_is_not_believed() -> None:
    book = PodBook()
    began(book, "1")
    book.observed("a", load(running=1, step_time=STEP_TIME.model_copy(update={"observed_steps": 99})), 1.0)
    assert book.view("a", 1.0).work_tokens == 100.0 + DEFAULT_DECODE_WEIGHT * 10.0


def test_what_others_sent_is_what_the_engine_has_beyond_ours() -> None:
    book = PodBook()
    began(book, "1")
    book.observed("a", load(running=2, waiting=2, queued_tokens=700), 1.0)
    began(book, "2")
    view = book.view("a", 1.0)
    assert view.in_flight == 2 + 3
    # The mean answer, of which 2 % are learned from each request; 600 tokens wait that are not ours.
    others = 600.0 + DEFAULT_DECODE_WEIGHT * 3 * (0.02 * 10.0)
    assert view.work_tokens == pytest.approx(200.0 + DEFAULT_DECODE_WEIGHT * 20.0 + others)


def test_an_engine_that_does_less_than_we_sent_has_only_not_seen_it_yet() -> None:
    book = PodBook()
    began(book, "1")
    book.observed("a", load(), 1.0)
    assert book.view("a", 1.0).in_flight == 1


def test_an_engine_not_heard_for_some_seconds_has_only_what_we_sent() -> None:
    book = PodBook()
    began(book, "1")
    book.observed("a", load(running=5, kv_used=900, queued_tokens=10), 1.0)
    assert book.view("a", 1.0 + STALE_AFTER_SECONDS - 0.01).in_flight == 5
    assert book.view("a", 1.0 + STALE_AFTER_SECONDS) == PodView(
        1, 100.0 + DEFAULT_DECODE_WEIGHT * 10.0, 0.0, 32, 0, True
    )
    book.observed("a", load(running=5), 20.0)
    assert book.view("a", 20.0).in_flight == 5


def test_a_forgotten_pod_is_as_if_never_seen() -> None:
    book = PodBook()
    began(book, "1")
    book.forget("a")
    book.ended("a", "1", 1.0)
    assert book.view("a", 1.0).in_flight == 0


def test_texts_have_a_quarter_as_many_tokens_as_characters_until_the_model_says_otherwise() -> None:
    book = PodBook()
    assert book.tokens_of(LLAMA, characters=4000) == 1000.0
    for _ in range(1000):
        book.learn_ratio(LLAMA, characters=2000, tokens=1000)
    assert book.tokens_of(LLAMA, characters=4000) == pytest.approx(2000.0, rel=0.01)
    assert book.tokens_of(model_id("other.team-a"), characters=4000) == 1000.0


def test_one_short_text_does_not_change_the_ratio_much() -> None:
    book = PodBook()
    book.learn_ratio(LLAMA, characters=2, tokens=40)
    assert book.tokens_of(LLAMA, characters=4000) == pytest.approx(1000.0, rel=0.05)


@given(
    steps=st.lists(
        st.tuples(st.sampled_from("bfeo"), st.sampled_from("ab"), st.sampled_from("123"), st.floats(0, 1e6)),
        max_size=60,
    )
)
def test_work_is_never_negative_and_ends_at_zero(steps: list[tuple[str, str, str, float]]) -> None:
    book = PodBook()
    for step, uid, request_id, tokens in steps:
        if step == "b":
            began(book, request_id, uid=uid, prefill=tokens, output=tokens / 2)
        elif step == "f":
            book.first_token(uid, request_id, 0.0)
        elif step == "e":
            book.ended(uid, request_id, 0.0)
        else:
            book.observed(uid, load(running=int(tokens) % 9), 0.0)
        view = book.view(uid, 0.0)
        assert view.work_tokens >= -1e-6
        assert view.in_flight >= book.in_flight(uid)
    for uid in "ab":
        for request_id in "123":
            book.ended(uid, request_id, 0.0)
        assert book.view(uid, STALE_AFTER_SECONDS)[:2] == (0, 0.0)
