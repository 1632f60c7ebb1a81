"""`python -m bench.gateway_routing [TRACE] [--engines 4 8] [--json FILE]`: routers on a trace with prefix hashes.

Simulated time, so the figures are the same on every machine. What the gateway's strategies decide with is the code
that they run; what they decide about are simulated engines with prefix caches.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from modelfleet_gateway.fleet import Strategy

from bench.routing_engine import EngineProfile, SimulatedEngine, SimulatedRequest
from bench.routing_policies import BoundedHashRouter, GatewayRouter, OmniscientRouter, Router

DEFAULT_TRACE = Path("../shared/traces/mooncake_synthetic_trace.jsonl")
PROBE_SECONDS = 1.0
WINDOW_SECONDS = 60.0
# What a generated token is worth in prefill tokens: what it adds to a step.
DECODE_WEIGHT = 0.103 / 0.0442
OMNISCIENT, OURS, LEAST_LOAD = "omniscient", "ours (Auto)", "least load"
REQUIRED_HIT_SHARE, REQUIRED_LOAD_RATIO = 0.95, 1.1

RouterOf = Callable[[Sequence[SimulatedEngine]], Router]


ROUTERS: dict[str, RouterOf] = {
    OMNISCIENT: partial(OmniscientRouter, strategy=Strategy.AUTO),
    OURS: partial(GatewayRouter, strategy=Strategy.AUTO),
    "ours, no KV events": partial(GatewayRouter, strategy=Strategy.AUTO, kv_events=False),
    LEAST_LOAD: partial(GatewayRouter, strategy=Strategy.LEAST_LOAD),
    "round robin": partial(GatewayRouter, strategy=Strategy.ROUND_ROBIN),
    "bounded hashing": BoundedHashRouter,
    "session": partial(GatewayRouter, strategy=Strategy.SESSION),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One router on one trace. Loads are work done per engine, in prefill tokens."""

    router: str
    hit_rate: float
    max_over_mean: float
    max_over_mean_minute: float
    ttft_median_seconds: float
    ttft_p95_seconds: float
    ttft_p99_seconds: float


class Replay:
    """One trace through one router. Events in order of time: arrivals, probes, ends of steps."""

    def __init__(self, requests: Sequence[SimulatedRequest], router_of: RouterOf, *, engines: int) -> None:
        self._requests = requests
        self._engines = [SimulatedEngine(EngineProfile()) for _ in range(engines)]
        self._router = router_of(self._engines)
        self._held: list[SimulatedRequest] = []
        self._events: list[tuple[float, int, int, int]] = []
        # Per engine: (start, steps planned, seconds of a step), None while idle; and which plan is the latest.
        self._plans: list[tuple[float, int, float] | None] = [None] * engines
        self._versions = [0] * engines
        self._work_at_window: list[list[float]] = []

    def run(self) -> None:
        """To the end of the last answer."""
        arrivals = iter(self._requests)
        arriving = next(arrivals, None)
        next_probe = next_window = 0.0
        while arriving is not None or self._events:
            next_step = self._events[0][0] if self._events else math.inf
            now = min(next_step, arriving.arrives_at if arriving else math.inf)
            while next_probe <= now:
                self._router.probe(now=next_probe)
                next_probe += PROBE_SECONDS
            while next_window <= now:
                self._work_at_window.append([self._work(engine) for engine in self._engines])
                next_window += WINDOW_SECONDS
            if arriving is not None and arriving.arrives_at <= next_step:
                self._held.append(arriving)
                arriving = next(arrivals, None)
                self._dispatch(now)
            else:
                self._finish_step(now)
        self._work_at_window.append([self._work(engine) for engine in self._engines])

    def row(self, name: str) -> Row:
        """What came of it."""
        work = [self._work(engine) for engine in self._engines]
        ttft = sorted(request.first_token_at - request.arrives_at for request in self._requests)
        hits = sum(request.cached_tokens for request in self._requests)
        return Row(
            router=name,
            hit_rate=hits / sum(request.prompt_tokens for request in self._requests),
            max_over_mean=max(work) / statistics.fmean(work),
            max_over_mean_minute=self._max_over_mean_minute(),
            ttft_median_seconds=statistics.median(ttft),
            ttft_p95_seconds=ttft[int(0.95 * len(ttft))],
            ttft_p99_seconds=ttft[int(0.99 * len(ttft))],
        )

    @staticmethod
    def _work(engine: SimulatedEngine) -> float:
        return engine.computed_tokens + DECODE_WEIGHT * engine.generated_tokens

    def _max_over_mean_minute(self) -> float:
        """The mean over minutes: a pod that is overloaded now is not helped by having been idle before."""
        ratios = []
        for before, after in zip(self._work_at_window, self._work_at_window[1:], strict=False):
            done = [late - early for early, late in zip(before, after, strict=True)]
            if sum(done):
                ratios.append(max(done) / statistics.fmean(done))
        return statistics.fmean(ratios)

    def _dispatch(self, now: float) -> None:
        while self._held:
            number = self._router.route(self._held[0], now=now)
            if number is None:
                return
            request = self._held.pop(0)
            request.engine = number
            self._interrupt(number, now)
            self._engines[number].submit(request)
            if self._plans[number] is None:
                self._plan(number, now)

    def _interrupt(self, number: int, now: float) -> None:
        """A run of equal steps ends with the one under way, so that the newcomer is in the next."""
        plan = self._plans[number]
        if plan is not None and plan[1] > 1:
            start, steps, seconds = plan
            done = min(max(math.ceil((now - start) / seconds), 1), steps)
            self._schedule(number, start, done, seconds)

    def _plan(self, number: int, now: float) -> None:
        steps, seconds = self._engines[number].plan_steps()
        if steps:
            self._schedule(number, now, steps, seconds)
        else:
            self._plans[number] = None

    def _schedule(self, number: int, start: float, steps: int, seconds: float) -> None:
        self._versions[number] += 1
        self._plans[number] = (start, steps, seconds)
        heapq.heappush(self._events, (start + steps * seconds, number, self._versions[number], steps))

    def _finish_step(self, now: float) -> None:
        _, number, version, steps = heapq.heappop(self._events)
        if version != self._versions[number]:
            return
        events = self._engines[number].run_steps(steps, now=now)
        for request in events.first_tokens:
            self._router.first_token(request, now=now)
        for request in events.ended:
            self._router.ended(request, now=now)
        self._plan(number, now)
        if events.ended and self._held:
            self._dispatch(now)


def read_trace(path: Path, *, speed: float) -> list[SimulatedRequest]:
    """The trace, played `speed` times as fast."""
    requests = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        requests.append(
            SimulatedRequest(
                number=number,
                arrives_at=row["timestamp"] / 1000 / speed,
                prompt_tokens=row["input_length"],
                output_tokens=max(row["output_length"], 1),
                blocks=tuple(row["hash_ids"]),
            )
        )
    return requests


def compare(trace: Sequence[SimulatedRequest], *, engines: int, names: Sequence[str]) -> list[Row]:
    """The same trace through each router."""
    rows = []
    for name in names:
        replay = Replay([replace(request) for request in trace], ROUTERS[name], engines=engines)
        replay.run()
        rows.append(replay.row(name))
    return rows


def format_rows(rows: Sequence[Row]) -> str:
    """A Markdown table, with the two ratios that are required of ours."""
    by_name = {row.router: row for row in rows}
    best, level = by_name[OMNISCIENT], by_name[LEAST_LOAD]
    lines = [
        "| router | hit rate | of omniscient | max/mean load | over least load | each minute | TTFT p50 | p95 | p99 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.router} | {row.hit_rate:.3f} | {row.hit_rate / best.hit_rate:.1%} | {row.max_over_mean:.3f} "
            f"| {row.max_over_mean / level.max_over_mean:.3f} | {row.max_over_mean_minute:.3f} "
            f"| {row.ttft_median_seconds:.2f} s | {row.ttft_p95_seconds:.2f} s | {row.ttft_p99_seconds:.2f} s |"
        )
    return "\n".join(lines)


def main() -> None:
    """Prints a table per number of engines; the trace's rate grows with the engines, so that each is as busy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", nargs="?", type=Path, default=DEFAULT_TRACE)
    parser.add_argument("--engines", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--speed-per-engine", type=float, default=0.25, help="1 = the trace as it was, per engine")
    parser.add_argument("--routers", nargs="+", default=list(ROUTERS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = {}
    for engines in arguments.engines:
        trace = read_trace(arguments.trace, speed=engines * arguments.speed_per_engine)
        rows = compare(trace, engines=engines, names=arguments.routers)
        results[engines] = [asdict(row) for row in rows]
        print(f"\n{engines} engines, the trace at {engines * arguments.speed_per_engine:g}x its rate\n")
        print(format_rows(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
