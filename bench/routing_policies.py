"""The routers that are compared: the gateway's own strategies, and its peers. Each sees what it could see in earnest,
but for the omniscient one."""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Iterator, Sequence
from typing import Protocol

import xxhash
from modelfleet_api.protocol import HistogramSnapshot, KvEvent, Load, LoadCounters
from modelfleet_gateway.fleet import Endpoint, Model, ModelId, Strategy
from modelfleet_gateway.placement import Job, place
from modelfleet_gateway.pool import EndpointState, ModelPool
from modelfleet_gateway.prefix_text import BLOCK_CHARACTERS, MAX_BLOCKS

from bench.routing_engine import BLOCK_TOKENS, SimulatedEngine, SimulatedRequest

CHARACTERS_PER_TOKEN = 4
# The gateway's blocks in one block of the trace.
TEXT_BLOCKS = BLOCK_TOKENS * CHARACTERS_PER_TOKEN // BLOCK_CHARACTERS
OUTPUT_MEMORY = 0.98
MODEL = ModelId(namespace="bench", name="trace")
_NOTHING = HistogramSnapshot(upper_bounds=(), counts=(0,), sum=0.0)


class Router(Protocol):
    """Chooses an engine, and hears what a gateway would hear of its answers."""

    def route(self, request: SimulatedRequest, *, now: float) -> int | None:
        """The engine's number; None: nobody has room, ask again when something has ended."""

    def first_token(self, request: SimulatedRequest, *, now: float) -> None:
        """The answer began."""

    def ended(self, request: SimulatedRequest, *, now: float) -> None:
        """The answer is complete."""

    def probe(self, *, now: float) -> None:
        """Once a second: the engines are asked how they are."""


def text_blocks_of(blocks: Sequence[int]) -> tuple[str, ...]:
    """The names of the gateway's text blocks that make up these blocks of the trace."""
    return tuple(f"{block}.{part}" for block in blocks for part in range(TEXT_BLOCKS))


class GatewayRouter:
    """The gateway's own pool and placement. With `kv_events` it hears what the engines' caches hold, as in earnest."""

    def __init__(
        self, engines: Sequence[SimulatedEngine], *, strategy: Strategy, kv_events: bool = True, seed: int = 1
    ) -> None:
        self.engines = engines
        self._kv_events = kv_events
        self._draws = random.Random(seed)
        self._pool = ModelPool(Model(id=MODEL, served_name="trace", strategy=strategy))
        self._pool.update_endpoints(Endpoint(uid=str(n), model=MODEL, base_url="") for n in range(len(engines)))
        self._mean_output_tokens = 150.0

    def route(self, request: SimulatedRequest, *, now: float) -> int | None:
        """As the dispatcher."""
        job = Job(
            model=MODEL,
            tenant="",
            priority=0,
            arrived=now,
            deadline=math.inf,
            prompt_tokens=float(request.prompt_tokens),
            output_tokens=self._mean_output_tokens,
            blocks=text_blocks_of(request.blocks[: request.prompt_tokens // BLOCK_TOKENS])[:MAX_BLOCKS],
            session_key=str(request.blocks[0]),
            id=str(request.number),
        )
        for states in self.states_in_order(request, self._pool.routable(now)):
            grant = place(self._pool, states, job, draw=self._draws.random(), now=now)
            if grant is not None:
                return int(grant.endpoint.uid)
        return None

    def states_in_order(
        self, request: SimulatedRequest, states: Sequence[EndpointState]
    ) -> Iterator[Sequence[EndpointState]]:
        """Groups of engines: the next one is tried where nobody of the one before has room."""
        yield states

    def first_token(self, request: SimulatedRequest, *, now: float) -> None:
        """Its prompt is no work any more."""
        self._pool.book.first_token(str(request.engine), str(request.number), now)

    def ended(self, request: SimulatedRequest, *, now: float) -> None:
        """Its answer's length is learned."""
        self._pool.book.ended(str(request.engine), str(request.number), now)
        self._mean_output_tokens += (1 - OUTPUT_MEMORY) * (request.output_tokens - self._mean_output_tokens)

    def probe(self, *, now: float) -> None:
        """`GET /load` of each engine, and its KV events since."""
        for number, engine in enumerate(self.engines):
            self._pool.observe_load(str(number), _load_of(engine), now)
            stored, evicted = engine.cache.take_events()
            if self._kv_events:
                event = KvEvent(sequence=0, stored=text_blocks_of(stored), evicted=text_blocks_of(evicted))
                self._pool.observe_kv(str(number), event)


class OmniscientRouter(GatewayRouter):
    """Looks into the engines: always to the longest prefix that is there or being computed, whatever the load; the
    gateway's own rule decides among equals."""

    def states_in_order(
        self, request: SimulatedRequest, states: Sequence[EndpointState]
    ) -> Iterator[Sequence[EndpointState]]:
        """By the length of the prefix."""
        matches = [self.engines[int(state.endpoint.uid)].promised_blocks(request.blocks) for state in states]
        for length in sorted(set(matches), reverse=True):
            yield [state for state, matched in zip(states, matches, strict=True) if matched == length]


class BoundedHashRouter:
    """Consistent hashing with bounded loads: the first block's place on a ring, and on until somebody has no more than
    1.25 times the mean in flight (Mirrokni, Thorup, Zadimoghaddam, 2016)."""

    BOUND = 1.25
    POINTS = 100

    def __init__(self, engines: Sequence[SimulatedEngine]) -> None:
        self._in_flight = [0] * len(engines)
        self._capacity = engines[0].profile.max_sequences
        ring = [(_hash(f"{n}.{p}"), n) for n in range(len(engines)) for p in range(self.POINTS)]
        self._ring = sorted(ring)

    def route(self, request: SimulatedRequest, *, now: float) -> int | None:
        """The first on the ring below the bound."""
        bound = self.BOUND * (sum(self._in_flight) + 1) / len(self._in_flight)
        start = bisect.bisect(self._ring, (_hash(str(request.blocks[0])), 0))
        for step in range(len(self._ring)):
            engine = self._ring[(start + step) % len(self._ring)][1]
            if self._in_flight[engine] < min(bound, self._capacity):
                self._in_flight[engine] += 1
                return engine
        return None

    def first_token(self, request: SimulatedRequest, *, now: float) -> None:
        """Of no interest to it."""

    def ended(self, request: SimulatedRequest, *, now: float) -> None:
        """One less in flight."""
        self._in_flight[request.engine] -= 1

    def probe(self, *, now: float) -> None:
        """It asks nobody."""


def _load_of(engine: SimulatedEngine) -> Load:
    profile = engine.profile
    return Load.model_construct(
        version=1,
        model="trace",
        phase="ready",
        ready=True,
        draining=False,
        running=len(engine.running),
        waiting=len(engine.waiting),
        queued_tokens=sum(request.prompt_tokens for request in engine.waiting),
        max_num_seqs=profile.max_sequences,
        kv_blocks_used=profile.kv_blocks - engine.cache.available_blocks,
        kv_blocks_total=profile.kv_blocks,
        step_time=None,
        counters=LoadCounters(),
        time_to_first_token_seconds=_NOTHING,
        inter_token_latency_seconds=_NOTHING,
        output_tokens=_NOTHING,
    )


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())
