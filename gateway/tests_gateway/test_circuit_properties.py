"""Any sequence of requests, answers and silences: an open circuit stays shut, and no engine is given up for ever."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from modelfleet_gateway.circuit import Circuit, CircuitState


class Engine(RuleBasedStateMachine):
    """Requests go wherever the circuit lets them, and end well, badly, or never."""

    def __init__(self) -> None:
        super().__init__()
        self.circuit = Circuit()
        self.now = 0.0
        self.failures_in_a_row = 0

    def is_closed(self) -> bool:
        return self.circuit.state is CircuitState.CLOSED

    @precondition(lambda self: self.circuit.allows(self.now))
    @rule()
    def send(self) -> None:
        was_closed = self.is_closed()
        self.circuit.began(self.now)
        assert self.circuit.allows(self.now) == was_closed

    @rule()
    def succeed(self) -> None:
        self.circuit.succeeded(self.now)
        self.failures_in_a_row = 0

    @rule()
    def probe(self) -> None:
        was_closed = self.is_closed()
        self.circuit.probed(self.now)
        if self.is_closed() and not was_closed:
            self.failures_in_a_row = 0

    @rule()
    def fail(self) -> None:
        self.circuit.failed(self.now)
        self.failures_in_a_row += 1

    @rule(seconds=st.sampled_from([0.25, 1.0, 5.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def it_is_open_only_after_failures_and_never_for_ever(self) -> None:
        assert 0 < self.circuit.slow_start(self.now) <= 1
        assert self.circuit.allows(self.now + 30.0)
        if self.is_closed():
            assert self.circuit.allows(self.now)
            assert self.failures_in_a_row < 3


TestEngine = Engine.TestCase
TestEngine.settings = settings(max_examples=60, stateful_step_count=50, deadline=None, derandomize=True, database=None)
