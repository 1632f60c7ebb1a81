"""Which pod gets a request."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelfleet_gateway.fleet import Strategy
from modelfleet_gateway.score import (
    BLOCK_TOKENS,
    KV_TIGHT,
    NO_ROOM,
    PREFIX_WEIGHT,
    Candidate,
    Choice,
    choose,
    has_room,
)

from tests_gateway.routing_world import candidate

# What one cached block is worth, in tokens of waiting work.
BLOCK = BLOCK_TOKENS * PREFIX_WEIGHT


def chosen(
    *candidates: Candidate,
    strategy: Strategy = Strategy.AUTO,
    prompt_blocks: int = 0,
    draw: float = 0.0,
    session_key: str | None = None,
    cursor: int = 0,
) -> Choice:
    return choose(
        candidates,
        strategy=strategy,
        prompt_blocks=prompt_blocks,
        draw=draw,
        session_key=session_key,
        cursor=cursor,
    )


def test_without_a_prefix_the_pod_with_the_least_work_is_chosen() -> None:
    choice = chosen(candidate("a", work=900.0), candidate("b", work=300.0), candidate("c", work=800.0))
    assert choice == Choice("b", "least-load", (("a", -900.0), ("b", -300.0), ("c", -800.0)))


def test_work_counts_and_not_the_number_of_requests() -> None:
    assert chosen(candidate("a", in_flight=1, work=9000.0), candidate("b", in_flight=7, work=700.0)).uid == "b"


def test_a_pod_with_the_prompts_beginning_is_chosen_while_it_saves_more_than_it_is_busier() -> None:
    cached = candidate("a", matched=8, work=8 * BLOCK - 100.0)
    choice = chosen(cached, candidate("b"), prompt_blocks=10)
    assert (choice.uid, choice.reason) == ("a", "prefix")
    assert choice.scores == (("a", -10 * BLOCK + 100.0), ("b", -10 * BLOCK))
    busier = cached._replace(work_tokens=8 * BLOCK + 100.0)
    assert chosen(busier, candidate("b"), prompt_blocks=10)[:2] == ("b", "least-load")


def test_a_prefix_attracts_nobody_to_a_pod_with_far_more_in_flight_than_the_mean() -> None:
    # A mean of 3 in flight: at most 1.5 * 3 + 2.
    cached = candidate("a", matched=10, in_flight=5, work=2000.0)
    pods = (candidate("b", in_flight=2, work=500.0), candidate("c", in_flight=2, work=400.0))
    assert chosen(cached, *pods, prompt_blocks=10)[:2] == ("a", "prefix")
    assert chosen(cached._replace(in_flight=9, max_in_flight=20), *pods, prompt_blocks=10)[:2] == ("c", "least-load")


def test_a_prompt_that_must_be_computed_goes_to_a_faster_pod_by_its_own_work() -> None:
    fast, slow = candidate("fast", work=3000.0, weight=2.0), candidate("slow", work=500.0)
    assert chosen(fast, slow, prompt_blocks=1).uid == "slow"
    assert chosen(fast, slow, prompt_blocks=16).uid == "fast"


def test_least_load_does_not_look_at_prefixes() -> None:
    pods = (candidate("a", matched=10, work=200.0), candidate("b"))
    assert chosen(*pods, strategy=Strategy.LEAST_LOAD, prompt_blocks=10)[:2] == ("b", "least-load")


def test_a_pod_twice_as_fast_may_have_twice_the_work() -> None:
    fast = candidate("a", work=1900.0, weight=2.0)
    assert chosen(fast, candidate("b", work=1100.0)).uid == "a"
    assert chosen(fast._replace(work_tokens=2300.0), candidate("b", work=1000.0)).uid == "b"


def test_a_pod_in_its_slow_start_takes_its_share() -> None:
    starting = candidate("a", cap=10, work=100.0)._replace(slow_start=0.25)
    assert chosen(starting, candidate("b", work=300.0)).uid == "b"
    assert [has_room(starting._replace(in_flight=n)) for n in (0, 2, 3)] == [True, True, False]
    assert has_room(candidate("a", cap=10)._replace(slow_start=0.01))


def test_a_pod_whose_cache_is_almost_full_is_left_alone() -> None:
    full = candidate("a")._replace(kv_usage=KV_TIGHT + 0.05)
    assert chosen(full, candidate("b", work=3000.0)).uid == "b"
    assert chosen(full._replace(kv_usage=KV_TIGHT), candidate("b", work=3000.0)).uid == "a"


def test_equal_pods_share_by_the_draw() -> None:
    pods = [candidate(uid) for uid in "abcd"]
    assert [chosen(*pods, draw=draw).uid for draw in (0.0, 0.3, 0.5, 0.99)] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("strategy", list(Strategy))
def test_nobody_is_chosen_where_nobody_has_room(strategy: Strategy) -> None:
    full = (candidate("a", in_flight=8), candidate("b", cap=0))
    assert chosen(*full, strategy=strategy, session_key="s") == NO_ROOM
    assert chosen(strategy=strategy, session_key="s") == NO_ROOM


def test_round_robin_takes_turns_among_those_with_room() -> None:
    pods = (candidate("a"), candidate("b", in_flight=8), candidate("c", work=1e6))
    taken = [chosen(*pods, strategy=Strategy.ROUND_ROBIN, cursor=cursor).uid for cursor in range(4)]
    assert taken == ["a", "c", "a", "c"]


def test_a_session_stays_where_it_is_and_moves_only_when_its_pod_goes() -> None:
    pods = [candidate(f"pod-{number}") for number in range(5)]

    def places(among: list[Candidate]) -> dict[str, str | None]:
        keys = [f"session-{number}" for number in range(200)]
        return {key: chosen(*among, strategy=Strategy.SESSION, session_key=key).uid for key in keys}

    before = places(pods)
    after = places(pods[1:])
    assert {key for key in before if before[key] != after[key]} == {k for k, uid in before.items() if uid == "pod-0"}
    assert min(Counter(before.values()).values()) > 200 / 5 / 2


def test_sessions_are_shared_by_weight() -> None:
    pods = (candidate("a", weight=3.0), candidate("b"))
    shares = Counter(chosen(*pods, strategy=Strategy.SESSION, session_key=str(n)).uid for n in range(1000))
    assert 700 < shares["a"] < 800


def test_a_session_leaves_a_pod_that_has_far_more_than_the_mean() -> None:
    pods = {uid: candidate(uid, cap=100) for uid in "abc"}
    home = chosen(*pods.values(), strategy=Strategy.SESSION, session_key="s")
    assert home.reason == "session"
    # A mean of 3: at most 1.5 * 3 + 2.
    pods[str(home.uid)] = pods[str(home.uid)]._replace(in_flight=9)
    away = chosen(*pods.values(), strategy=Strategy.SESSION, session_key="s")
    assert away.reason == "session-overflow"
    assert away.uid != home.uid


def test_a_session_without_a_key_goes_where_there_is_least_work() -> None:
    assert chosen(candidate("a", work=500.0), candidate("b"), strategy=Strategy.SESSION)[:2] == ("b", "least-load")


PODS = st.lists(
    st.builds(
        Candidate,
        st.uuids().map(str),
        matched_blocks=st.integers(0, 128),
        in_flight=st.integers(0, 12),
        max_in_flight=st.integers(0, 10),
        work_tokens=st.floats(0, 1e7),
        kv_usage=st.floats(0, 1),
        weight=st.floats(0.1, 10),
        slow_start=st.floats(0.01, 1),
    ),
    max_size=12,
)
DRAWS = st.floats(0, 1, exclude_max=True)


@given(
    pods=PODS, strategy=st.sampled_from(Strategy), draw=DRAWS, key=st.none() | st.text(), cursor=st.integers(0, 2**40)
)
def test_a_pod_with_room_is_found_where_there_is_one_and_always_the_same(
    pods: list[Candidate], strategy: Strategy, draw: float, key: str | None, cursor: int
) -> None:
    choices = [
        chosen(*pods, strategy=strategy, prompt_blocks=128, draw=draw, session_key=key, cursor=cursor) for _ in range(2)
    ]
    assert choices[0] == choices[1]
    with_room = {pod.uid for pod in pods if has_room(pod)}
    assert {uid for uid, _ in choices[0].scores} == with_room
    assert choices[0].uid in with_room if with_room else choices[0] == NO_ROOM


@given(
    strategy=st.sampled_from(Strategy),
    pods=st.integers(1, 8),
    matched=st.lists(st.integers(0, 16), min_size=8, max_size=8),
    draws=st.lists(DRAWS, min_size=1, max_size=20),
)
def test_no_pod_starves_however_good_the_others_prefixes_are(
    strategy: Strategy, pods: int, matched: list[int], draws: list[float]
) -> None:
    """Requests that come and do not end fill every pod to its last place before one is turned away."""
    fleet = {f"pod-{n}": candidate(f"pod-{n}", matched=matched[n], cap=5) for n in range(pods)}
    first_full_at: dict[str, int] = {}
    for number in range(5 * pods):
        choice = chosen(
            *fleet.values(),
            strategy=strategy,
            prompt_blocks=16,
            draw=draws[number % len(draws)],
            session_key="s",
            cursor=number,
        )
        pod = fleet[str(choice.uid)]
        work = pod.work_tokens + (16 - pod.matched_blocks) * BLOCK_TOKENS + 300.0
        fleet[pod.uid] = pod._replace(in_flight=pod.in_flight + 1, work_tokens=work)
        if fleet[pod.uid].in_flight == 5:
            first_full_at[pod.uid] = number
    assert set(first_full_at) == set(fleet)
    assert chosen(*fleet.values(), strategy=strategy, prompt_blocks=16) == NO_ROOM
