"""Builders for tests of routing: models, fleets, candidates and the engine's word about itself."""

from __future__ import annotations

from modelfleet_api.protocol import HistogramSnapshot, Load, StepTime
from modelfleet_gateway.fleet import Fleet, Model, ModelId, Route
from modelfleet_gateway.score import Candidate


def model_id(canonical: str) -> ModelId:
    """Of `name.namespace`."""
    name, _, namespace = canonical.partition(".")
    return ModelId(namespace=namespace, name=name)


def model(canonical: str, *, serves: str | None = None, created_at: float = 0.0) -> Model:
    """A model that serves its own name unless told otherwise."""
    identity = model_id(canonical)
    return Model(id=identity, served_name=serves or identity.name, created_at=created_at)


def fleet(*models: Model, routes: tuple[Route, ...] = ()) -> Fleet:
    """A fleet of these models, without engines."""
    return Fleet(models={each.id: each for each in models}, routes=routes)


def candidate(
    uid: str, *, matched: int = 0, in_flight: int = 0, cap: int = 8, work: float = 0.0, weight: float = 1.0
) -> Candidate:
    """An idle pod with room for eight, past its slow start, its KV cache empty."""
    return Candidate(uid, matched, in_flight, cap, work, 0.0, weight, 1.0)


def load(
    *,
    running: int = 0,
    waiting: int = 0,
    queued_tokens: int = 0,
    kv_used: int = 0,
    step_time: StepTime | None = None,
) -> Load:
    """What a ready engine for at most 32 sequences says, with 1,000 KV blocks."""
    nothing = HistogramSnapshot(upper_bounds=(), counts=(0,), sum=0.0)
    return Load(
        model="m",
        phase="ready",
        ready=True,
        draining=False,
        running=running,
        waiting=waiting,
        queued_tokens=queued_tokens,
        max_num_seqs=32,
        kv_blocks_used=kv_used,
        kv_blocks_total=1000,
        step_time=step_time,
        time_to_first_token_seconds=nothing,
        inter_token_latency_seconds=nothing,
        output_tokens=nothing,
    )
