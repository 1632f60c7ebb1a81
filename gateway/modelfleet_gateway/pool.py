"""One model at run time: its engines' state, their work, its prefix index and the requests that wait for it.

PURE: no clock, no I/O. `dispatcher` decides what happens to it, `probe` tells it what engines say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from modelfleet_api.protocol import KvEvent, Load

from modelfleet_gateway.circuit import Circuit, CircuitState
from modelfleet_gateway.fair_queue import FairQueue
from modelfleet_gateway.fleet import Endpoint, Model
from modelfleet_gateway.gateway_statistics import ModelStatistics
from modelfleet_gateway.prefix_index import PrefixIndex
from modelfleet_gateway.score import Candidate
from modelfleet_gateway.work import PodBook

# 16 million characters of prompts a pod: more than the KV cache of one holds.
CAPACITY_BLOCKS = 16_384
# Until a start was measured.
UNKNOWN_START_SECONDS = 30.0
# An engine that computes may answer late once; one that refuses connections is away at once.
PROBE_FAILURES_TO_LEAVE = 2


@dataclass(slots=True)
class EndpointState:
    """One engine as this gateway sees it."""

    endpoint: Endpoint
    circuit: Circuit = field(default_factory=Circuit)
    # By its own word; nothing is sent before the first one.
    is_ready: bool = False
    # It answered that it drains: true until it says otherwise or is gone.
    is_refusing: bool = False
    # Speaks OpenAI's API, but not our protocol.
    is_foreign: bool = False
    # Seen here, by counters that fell: beside those the source knows of.
    observed_restarts: int = 0
    probe_failures: int = 0
    requests_counted: int = 0

    def is_routable(self, now: float) -> bool:
        """Whether new requests may go there."""
        is_open = self.is_ready and not self.is_refusing and not self.endpoint.is_draining
        return is_open and self.circuit.allows(now)

    @property
    def restarts(self) -> int:
        """Grows with each restart that is known."""
        return self.endpoint.restarts + self.observed_restarts


class ModelPool:
    """All of one model's state. `model` is replaced when the source says so; the rest stays."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.states: dict[str, EndpointState] = {}
        self.book = PodBook()
        self.index = PrefixIndex(CAPACITY_BLOCKS)
        self.queue = FairQueue()
        self.statistics = ModelStatistics()
        # How many requests were sent on, for taking turns.
        self.cursor = 0
        self._measured_start_seconds: float | None = None
        # As last told to those who listen for demand.
        self.has_demand = False
        # Since when somebody waits while no engine is routable.
        self._waiting_since: float | None = None

    def update_endpoints(self, endpoints: Iterable[Endpoint]) -> None:
        """The engines that exist now: new ones start unready, those that are gone are forgotten."""
        known = {endpoint.uid: endpoint for endpoint in endpoints}
        for uid in [uid for uid in self.states if uid not in known]:
            del self.states[uid]
            self.book.forget(uid)
            self.index.forget(uid)
        for uid, endpoint in known.items():
            state = self.states.get(uid)
            if state is None or state.endpoint.base_url != endpoint.base_url:
                self.states[uid] = EndpointState(endpoint)
                continue
            if endpoint.restarts != state.endpoint.restarts:
                self.index.forget(uid)
            state.endpoint = endpoint

    @property
    def has_foreign(self) -> bool:
        """Whether some engine does not speak our protocol."""
        return any(state.is_foreign for state in self.states.values())

    def routable(self, now: float) -> list[EndpointState]:
        """Engines that new requests may go to, with or without room."""
        return [state for state in self.states.values() if state.is_routable(now)]

    def candidates(self, states: Sequence[EndpointState], *, blocks: Sequence[str], now: float) -> list[Candidate]:
        """The engines as the score sees them."""
        matched = self.index.matches(blocks, [state.endpoint.uid for state in states]) if blocks else {}
        found = []
        for state in states:
            uid = state.endpoint.uid
            in_flight, work_tokens, kv_usage, max_in_flight, _, _ = self.book.view(uid, now)
            found.append(
                Candidate(
                    uid,
                    matched.get(uid, 0),
                    in_flight,
                    max_in_flight,
                    work_tokens,
                    kv_usage,
                    state.endpoint.weight,
                    state.circuit.slow_start(now),
                )
            )
        return found

    def observe_load(self, uid: str, load: Load, now: float) -> None:
        """The engine's answer to a probe."""
        state = self.states.get(uid)
        if state is None:
            return
        counted = load.counters.requests + load.counters.steps
        if counted < state.requests_counted:
            state.observed_restarts += 1
            self.index.forget(uid)
        state.requests_counted = counted
        self.book.observed(uid, load, now)
        self.observe_ready(uid, is_ready=load.ready and not load.draining, now=now)

    def observe_ready(self, uid: str, *, is_ready: bool, now: float, is_foreign: bool = False) -> None:
        """The engine answered a probe: it takes requests, or not (yet, or no more)."""
        state = self.states.get(uid)
        if state is None:
            return
        state.is_foreign = is_foreign
        state.probe_failures = 0
        state.is_ready = is_ready
        state.is_refusing = state.is_refusing and not is_ready
        # Only one that is open hears of it: else a probe between two failures would make them look apart.
        if state.circuit.state is not CircuitState.CLOSED:
            state.circuit.succeeded(now)

    def observe_silence(self, uid: str, *, is_gone: bool) -> None:
        """A probe failed; `is_gone`: nobody listens there."""
        state = self.states.get(uid)
        if state is not None:
            state.probe_failures += 1
            if is_gone or state.probe_failures >= PROBE_FAILURES_TO_LEAVE:
                state.is_ready = False

    def observe_kv(self, uid: str, event: KvEvent) -> None:
        """What the engine has cached, by its own word."""
        if uid in self.states:
            self.index.apply(uid, snapshot=event.snapshot, stored=event.stored, evicted=event.evicted)

    @property
    def is_measuring_start(self) -> bool:
        """Whether somebody waited for an engine when it was last looked at."""
        return self._waiting_since is not None

    @property
    def start_seconds(self) -> float:
        """How long a start takes, as clients who wait for it see it."""
        measured = self._measured_start_seconds
        return UNKNOWN_START_SECONDS if measured is None else measured

    def note_start(self, *, has_waiting: bool, now: float) -> None:
        """Measures how long the first of those who wait waits until an engine is ready."""
        is_ready = any(state.is_ready for state in self.states.values())
        if has_waiting and not is_ready:
            if self._waiting_since is None:
                self._waiting_since = now
        elif self._waiting_since is not None:
            if is_ready:
                waited = now - self._waiting_since
                before = self._measured_start_seconds
                # The newest start counts half: images get cached, models change.
                self._measured_start_seconds = waited if before is None else (before + waited) / 2
            self._waiting_since = None

    def retry_after_seconds(self, now: float, *, has_routable: bool) -> float:
        """When asking again is worthwhile: what is left of a start, or a moment where there is only a queue."""
        if has_routable:
            return 1.0 + len(self.queue) * 0.01
        waited = 0.0 if self._waiting_since is None else now - self._waiting_since
        return max(1.0, self.start_seconds - waited)
