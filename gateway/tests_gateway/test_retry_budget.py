"""How many requests may be tried again, and the sliding window that counts them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from modelfleet_gateway.retry_budget import RetryBudget
from modelfleet_gateway.sliding_window import SlidingWindow


def spent(budget: RetryBudget, now: float) -> int:
    """How many retries the budget grants now."""
    granted = 0
    while budget.try_spend(now):
        granted += 1
    return granted


def test_a_quiet_gateway_has_ten_seconds_of_free_retries() -> None:
    budget = RetryBudget()

    assert spent(budget, 0.0) == 10
    assert spent(budget, 9.9) == 0
    assert spent(budget, 10.0) == 10


def test_a_tenth_of_the_requests_of_ten_seconds_may_be_tried_again_besides() -> None:
    budget = RetryBudget()
    for number in range(1000):
        budget.request(number / 100)

    assert spent(budget, 9.99) == 110


def test_requests_of_more_than_ten_seconds_ago_pay_for_nothing() -> None:
    budget = RetryBudget(fraction=0.5, minimum_per_second=0)
    for _ in range(100):
        budget.request(0.0)

    assert spent(budget, 10.0) == 0


def test_without_a_minimum_the_first_retry_needs_its_requests() -> None:
    budget = RetryBudget(minimum_per_second=0)
    for _ in range(9):
        budget.request(0.0)
    assert not budget.try_spend(0.0)
    budget.request(0.0)
    assert budget.try_spend(0.0)


def test_uses_leave_a_window_after_its_length_and_close_ones_leave_together() -> None:
    window = SlidingWindow(seconds=60.0)
    for now, amount in ((0.0, 5), (0.05, 1), (0.2, 3)):
        window.add(now, amount)

    assert [window.total(now) for now in (59.0, 60.0, 60.05, 60.2)] == [9, 9, 3, 0]


def test_a_window_says_when_there_will_be_room_and_when_it_will_be_empty() -> None:
    window = SlidingWindow(seconds=60.0)
    for now, amount in ((0.0, 50), (10.0, 30), (20.0, 20)):
        window.add(now, amount)

    waits = [window.seconds_until_room(30.0, room, limit=100) for room in (0, 1, 50, 51, 81, 101)]
    assert waits == [0.0, 30.0, 30.0, 40.0, 50.0, 60.0]
    assert window.seconds_until_empty(30.0) == 50.0
    assert window.seconds_until_empty(80.0) == 0.0


def test_what_is_given_back_is_taken_from_the_oldest_and_never_more_than_there_is() -> None:
    window = SlidingWindow(seconds=60.0)
    window.add(0.0, 50)
    window.add(10.0, 30)

    assert window.give_back(20.0, 60) == 60
    assert [window.total(now) for now in (20.0, 60.0, 70.0)] == [20, 20, 0]
    assert window.give_back(71.0, 5) == 0


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(uses=st.lists(st.tuples(st.floats(0, 5), st.integers(1, 9)), max_size=40))
def test_a_window_never_forgets_early_nor_remembers_more_than_a_tenth_of_a_second_longer(
    uses: list[tuple[float, int]],
) -> None:
    window = SlidingWindow(seconds=10.0)
    now = 0.0
    history: list[tuple[float, int]] = []
    for pause, amount in uses:
        now += pause
        window.add(now, amount)
        history.append((now, amount))

        total = window.total(now)
        assert sum(amount for at, amount in history if at + 10.0 > now) <= total
        assert total <= sum(amount for at, amount in history if at + 10.11 > now)
