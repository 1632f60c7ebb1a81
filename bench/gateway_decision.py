"""`python -m bench.gateway_decision [--json FILE] [--check]`: what one routing decision costs, in microseconds.

The decision is everything between a request's blocks and its place: who is routable, matches, candidates, choice,
record. Medians over many decisions on one core, for fleets of three sizes; beside it what a prompt's text costs.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from modelfleet_gateway.fleet import Endpoint, Fleet, Model, ModelId, Strategy
from modelfleet_gateway.placement import Job, place
from modelfleet_gateway.pool import ModelPool
from modelfleet_gateway.prefix_text import MAX_BLOCKS, prompt_text, text_blocks
from modelfleet_gateway.resolve import resolve
from modelfleet_gateway.score import choose

FLEET_SIZES = (1, 8, 64)
PROMPT_BLOCKS = 16
REQUESTS_PER_POD = 10
NOW = 1.0
LIMIT_US = 50.0
MODEL = ModelId(namespace="team-a", name="llama")


def median_us(work: Callable[[], object], *, calls: int = 20, samples: int = 300) -> float:
    """The median over samples of the mean over a few calls: a clock's tick is nothing beside twenty of them."""
    for _ in range(calls):
        work()
    taken = []
    for _ in range(samples):
        start = time.perf_counter_ns()
        for _ in range(calls):
            work()
        taken.append((time.perf_counter_ns() - start) / calls / 1000)
    return statistics.median(taken)


class BusyFleet:
    """Pods with work, each with a beginning of its own length of the same prompt."""

    def __init__(self, pods: int, strategy: Strategy, *, seed: int = 1) -> None:
        draws = random.Random(seed)
        self.blocks = tuple(f"{draws.getrandbits(64):016x}" for _ in range(PROMPT_BLOCKS))
        self.uids = [f"pod-{number}" for number in range(pods)]
        self.pool = ModelPool(Model(id=MODEL, served_name="llama", strategy=strategy))
        self.pool.update_endpoints(Endpoint(uid=uid, model=MODEL, base_url="http://10.0.0.1:8000") for uid in self.uids)
        for uid in self.uids:
            self.pool.observe_ready(uid, is_ready=True, now=0.0)
            self.pool.index.record(uid, 0, self.blocks[: draws.randrange(PROMPT_BLOCKS + 1)])
            for number in range(REQUESTS_PER_POD):
                self.pool.book.began(
                    uid,
                    request_id=f"{uid}-{number}",
                    prefill_tokens=draws.uniform(0, 4000),
                    output_tokens=150.0,
                    now=0.0,
                )
        self.job = Job(
            model=MODEL,
            tenant="tenant",
            priority=0,
            arrived=0.0,
            deadline=300.0,
            prompt_tokens=4096.0,
            output_tokens=150.0,
            blocks=self.blocks,
            session_key="session",
            id="new",
        )

    def place(self) -> None:
        """One whole decision and its record; then its end, so that the next one finds the same."""
        grant = place(self.pool, self.pool.routable(NOW), self.job, draw=0.5, now=NOW)
        if grant is None:
            raise AssertionError("there is room")
        self.pool.book.ended(grant.endpoint.uid, "new", NOW)


def measure() -> dict[str, float]:
    """All figures by name."""
    figures = {}
    for strategy in (Strategy.AUTO, Strategy.SESSION, Strategy.ROUND_ROBIN):
        for pods in FLEET_SIZES:
            figures[_decision(strategy, pods)] = median_us(BusyFleet(pods, strategy).place)
    figures |= _parts_us(BusyFleet(max(FLEET_SIZES), Strategy.AUTO))
    text = "The quick brown fox jumps over the lazy dog. " * 400
    turns = [{"role": "user", "content": text[:274]} for _ in range(8)]
    body = {"messages": [{"role": "system", "content": text[:6000]}, *turns]}
    figures["text of a chat of 8,192 characters"] = median_us(lambda: prompt_text(body))
    figures["hashes of 8,192 characters"] = median_us(lambda: text_blocks(text[:8192], salt="tenant"))
    figures["resolve, 100 models"] = _resolve_us()
    return figures


def _decision(strategy: Strategy, pods: int) -> str:
    return f"decision, {strategy}, {pods} pods, {PROMPT_BLOCKS} blocks"


def _parts_us(fleet: BusyFleet) -> dict[str, float]:
    """What a decision among 64 is made of."""
    pool = fleet.pool
    states = pool.routable(NOW)
    candidates = pool.candidates(states, blocks=fleet.blocks, now=NOW)
    decide = partial(
        choose,
        candidates,
        strategy=Strategy.AUTO,
        prompt_blocks=PROMPT_BLOCKS,
        draw=0.5,
        session_key=None,
        cursor=0,
    )
    long_prompt = tuple(f"block-{number}" for number in range(MAX_BLOCKS))
    pool.index.record("pod-1", 0, long_prompt)
    return {
        "- routable": median_us(partial(pool.routable, NOW)),
        "- matches": median_us(partial(pool.index.matches, fleet.blocks, fleet.uids)),
        "- candidates, with matches": median_us(partial(pool.candidates, states, blocks=fleet.blocks, now=NOW)),
        "- choose": median_us(decide),
        "matches, 64 pods, 128 blocks": median_us(partial(pool.index.matches, long_prompt, fleet.uids)),
        "record, 128 blocks": median_us(partial(pool.index.record, "pod-1", 0, long_prompt)),
    }


def _resolve_us() -> float:
    ids = [ModelId(namespace="team-a", name=f"model-{n}") for n in range(100)]
    fleet = Fleet(models={each: Model(id=each, served_name=each.name) for each in ids})
    return median_us(
        lambda: resolve(fleet, requested="model-50", host="modelfleet.modelfleet-system", headers={}, draw=0.5)
    )


def main() -> None:
    """Prints a table; `--check` fails where a decision of 64 pods takes more than 50 us."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    figures = measure()
    print("| | median |\n|---|---|")
    for name, microseconds in figures.items():
        print(f"| {name} | {microseconds:.1f} us |")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")
    decision_us = figures[_decision(Strategy.AUTO, 64)]
    if arguments.check and decision_us > LIMIT_US:
        sys.exit(f"a decision of 64 pods takes {decision_us:.1f} us, more than {LIMIT_US:g}")


if __name__ == "__main__":
    main()
