"""From a request and a model's engines to a place on one of them. PURE: the time and the draw are arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from modelfleet_gateway.fleet import Endpoint, ModelId, Strategy
from modelfleet_gateway.pool import EndpointState, ModelPool
from modelfleet_gateway.score import Choice, choose


@dataclass(slots=True, kw_only=True)
class Job:
    """One request as the queue and the score see it. Times are on the monotonic clock."""

    model: ModelId
    tenant: str
    priority: int
    arrived: float
    # Of the whole request, by its client or by the gateway's configuration.
    deadline: float
    prompt_tokens: float
    output_tokens: float
    blocks: tuple[str, ...] = ()
    session_key: str | None = None
    # Engines that failed it already: others first.
    avoid: frozenset[str] = field(default_factory=frozenset)
    # Set by the dispatcher: clients may send one x-request-id twice.
    id: str = ""
    hold_until: float = 0.0

    @property
    def work_tokens(self) -> float:
        """What it is expected to cost."""
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A place on an engine, until it is released."""

    job: Job
    endpoint: Endpoint
    choice: Choice
    matched_blocks: int


def place(pool: ModelPool, routable: Sequence[EndpointState], job: Job, *, draw: float, now: float) -> Grant | None:
    """Takes the best place there is; None if no engine has room.

    Engines that failed the request already get it again only where no other has room.
    """
    grant = None
    if job.avoid:
        others = [state for state in routable if state.endpoint.uid not in job.avoid]
        grant = _place(pool, others, job, draw=draw, now=now)
    return grant or _place(pool, routable, job, draw=draw, now=now)


def _place(pool: ModelPool, states: Sequence[EndpointState], job: Job, *, draw: float, now: float) -> Grant | None:
    strategy = pool.model.strategy
    blocks = () if strategy is Strategy.LEAST_LOAD else job.blocks
    candidates = pool.candidates(states, blocks=blocks, now=now)
    choice = choose(
        candidates,
        strategy=strategy,
        prompt_blocks=len(blocks),
        draw=draw,
        session_key=job.session_key,
        cursor=pool.cursor,
    )
    if choice.uid is None:
        return None
    matched_blocks = next(candidate.matched_blocks for candidate in candidates if candidate.uid == choice.uid)
    state = pool.states[choice.uid]
    missing = 1.0 - matched_blocks / len(blocks) if blocks else 1.0
    pool.cursor += 1
    pool.book.began(
        choice.uid,
        request_id=job.id,
        prefill_tokens=job.prompt_tokens * missing,
        output_tokens=job.output_tokens,
        now=now,
    )
    state.circuit.began(now)
    if blocks:
        pool.index.record(choice.uid, state.restarts, blocks)
    return Grant(job=job, endpoint=state.endpoint, choice=choice, matched_blocks=matched_blocks)
