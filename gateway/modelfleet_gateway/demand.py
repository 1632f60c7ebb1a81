"""`/internal/demand` and `/internal/endpoints`: what autoscaler and operator want to know, as long polls.

A poll names the version it has (`?after=`) and how long it may wait (`?timeout=` in seconds); it is answered at once
if there is another version. Changes that are worth a new version: somebody begins or ceases to wait for a model; an
engine's state changes; a draining engine gets emptier.
"""

from __future__ import annotations

import time
from enum import StrEnum

from modelfleet_api.base import WireModel
from modelfleet_api.protocol import PROTOCOL_VERSION, HistogramSnapshot
from pydantic import Field

from modelfleet_gateway.dispatcher import Dispatcher
from modelfleet_gateway.pool import ModelPool

MAX_POLL_SECONDS = 60.0


class ModelDemand(WireModel):
    """One model: who waits now, and what has come since the start of the gateway."""

    model: str
    held: int
    queued_tokens: float
    ready_endpoints: int
    arrivals: int
    prompt_tokens: float
    cached_tokens: float
    completion_tokens: float
    start_seconds: float
    time_to_first_token_seconds: HistogramSnapshot
    inter_token_latency_seconds: HistogramSnapshot


class Demand(WireModel):
    """The answer of `GET /internal/demand`."""

    version: int = PROTOCOL_VERSION
    after: int
    models: tuple[ModelDemand, ...] = ()


class EndpointPhase(StrEnum):
    """How the gateway treats an engine."""

    # Not ready by its own word, or out of order.
    UNREADY = "unready"
    ACCEPTING = "accepting"
    # Acknowledged: nothing new is sent.
    DRAINING = "draining"


class EndpointReport(WireModel):
    """One engine: what this gateway does with it and has there."""

    model: str
    phase: EndpointPhase
    in_flight: int
    work_tokens: float


class Endpoints(WireModel):
    """The answer of `GET /internal/endpoints`, by uid."""

    version: int = PROTOCOL_VERSION
    after: int
    endpoints: dict[str, EndpointReport] = Field(default_factory=dict)


def report_demand(dispatcher: Dispatcher) -> Demand:
    """Now."""
    now = time.monotonic()
    models = tuple(_model_demand(pool, now) for _, pool in sorted(dispatcher.pools.items()))
    return Demand(after=dispatcher.demand.version, models=models)


def report_endpoints(dispatcher: Dispatcher) -> Endpoints:
    """Now."""
    now = time.monotonic()
    reports = {
        uid: EndpointReport(
            model=pool.model.id.canonical,
            phase=_phase(pool, uid, now),
            in_flight=pool.book.in_flight(uid),
            work_tokens=pool.book.view(uid, now).work_tokens,
        )
        for pool in dispatcher.pools.values()
        for uid in pool.states
    }
    return Endpoints(after=dispatcher.endpoints.version, endpoints=dict(sorted(reports.items())))


def _phase(pool: ModelPool, uid: str, now: float) -> EndpointPhase:
    state = pool.states[uid]
    if state.endpoint.is_draining or state.is_refusing:
        return EndpointPhase.DRAINING
    return EndpointPhase.ACCEPTING if state.is_routable(now) else EndpointPhase.UNREADY


def _model_demand(pool: ModelPool, now: float) -> ModelDemand:
    statistics = pool.statistics
    return ModelDemand(
        model=pool.model.id.canonical,
        held=len(pool.queue),
        queued_tokens=pool.queue.tokens,
        ready_endpoints=len(pool.routable(now)),
        arrivals=statistics.arrivals,
        prompt_tokens=statistics.prompt_tokens,
        cached_tokens=statistics.cached_tokens,
        completion_tokens=statistics.completion_tokens,
        start_seconds=pool.start_seconds,
        time_to_first_token_seconds=statistics.first_token_seconds.snapshot(),
        inter_token_latency_seconds=statistics.token_gap_seconds.snapshot(),
    )
