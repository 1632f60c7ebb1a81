"""When an engine is left alone after failures, how it is tried again, and how slowly its load comes back."""

from __future__ import annotations

import pytest
from modelfleet_gateway.circuit import Circuit, CircuitState


def opened(at: float = 0.0) -> Circuit:
    circuit = Circuit()
    for _ in range(3):
        circuit.failed(at)
    return circuit


def test_an_engine_that_never_failed_gets_its_whole_load() -> None:
    circuit = Circuit()

    assert circuit.allows(0.0)
    assert (circuit.state, circuit.slow_start(0.0)) == (CircuitState.CLOSED, 1.0)


def test_three_failures_in_a_row_open_it_for_a_second() -> None:
    circuit = Circuit()
    circuit.failed(9.0)
    circuit.failed(9.5)
    assert circuit.allows(9.5)

    circuit.failed(10.0)

    assert circuit.state is CircuitState.OPEN
    assert [circuit.allows(now) for now in (10.0, 10.99, 11.0)] == [False, False, True]


def test_failures_between_successes_do_not_open_it() -> None:
    circuit = Circuit()
    for now in range(20):
        circuit.failed(now)
        circuit.failed(now)
        circuit.succeeded(now)

    assert circuit.state is CircuitState.CLOSED
    assert circuit.slow_start(20.0) == 1.0


def test_one_probe_is_let_through_and_nobody_beside_it() -> None:
    circuit = opened()
    assert [circuit.allows(1.0), circuit.allows(1.0)] == [True, True]

    circuit.began(1.0)

    assert circuit.state is CircuitState.HALF_OPEN
    assert not circuit.allows(1.0)
    assert not circuit.allows(20.0)


def test_a_probe_that_never_ends_makes_room_for_another_after_half_a_minute() -> None:
    circuit = opened()
    circuit.began(1.0)

    assert [circuit.allows(now) for now in (30.9, 31.0)] == [False, True]
    circuit.began(31.0)
    assert not circuit.allows(31.0)


def test_each_failed_probe_doubles_the_wait_up_to_half_a_minute() -> None:
    circuit = opened()
    now = 0.0
    waits = []
    for _ in range(7):
        wait = next(seconds for seconds in range(1, 100) if circuit.allows(now + seconds))
        waits.append(wait)
        now += wait
        circuit.began(now)
        circuit.failed(now)

    assert waits == [1, 2, 4, 8, 16, 30, 30]


def test_a_probe_that_succeeds_closes_it_and_the_load_comes_back_over_ten_seconds() -> None:
    circuit = opened()
    assert circuit.slow_start(0.5) == 0.1
    circuit.began(1.0)
    assert circuit.slow_start(1.5) == 0.1
    circuit.succeeded(2.0)

    assert circuit.state is CircuitState.CLOSED
    assert circuit.allows(2.0)
    assert [circuit.slow_start(now) for now in (2.0, 7.0, 12.0, 100.0)] == pytest.approx([0.1, 0.55, 1.0, 1.0])


def test_an_active_probe_that_succeeds_after_the_wait_closes_it_without_a_request() -> None:
    circuit = opened()

    circuit.probed(0.9)
    assert not circuit.allows(0.9)
    circuit.probed(1.0)

    assert circuit.state is CircuitState.CLOSED


def test_active_probes_between_failed_requests_do_not_hide_them() -> None:
    circuit = Circuit()
    for now in (0.0, 1.0, 2.0):
        circuit.probed(now)
        circuit.failed(now)

    assert circuit.state is CircuitState.OPEN


def test_what_was_sent_before_it_opened_neither_closes_nor_prolongs_it() -> None:
    circuit = opened()

    circuit.failed(0.2)
    circuit.failed(0.4)
    circuit.failed(0.6)
    circuit.succeeded(0.8)

    assert circuit.state is CircuitState.OPEN
    assert circuit.allows(1.0)


def test_a_relapse_during_the_slow_start_goes_on_doubling() -> None:
    circuit = opened()
    circuit.began(1.0)
    circuit.succeeded(1.0)
    for _ in range(3):
        circuit.failed(5.0)

    assert [circuit.allows(now) for now in (6.9, 7.0)] == [False, True]


def test_after_a_whole_slow_start_in_health_the_wait_begins_at_a_second_again() -> None:
    circuit = opened()
    for now in (1.0, 3.0):
        circuit.began(now)
        circuit.failed(now)
    circuit.began(7.0)
    circuit.succeeded(7.0)
    for _ in range(3):
        circuit.failed(17.0)

    assert [circuit.allows(now) for now in (17.9, 18.0)] == [False, True]
