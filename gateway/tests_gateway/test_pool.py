"""One model's state as probes and requests change it, on a clock of the test's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from modelfleet_api.protocol import HistogramSnapshot, KvEvent, Load, LoadCounters
from modelfleet_gateway.circuit import CircuitState
from modelfleet_gateway.fleet import Endpoint, Model, ModelId
from modelfleet_gateway.placement import Job, place
from modelfleet_gateway.pool import UNKNOWN_START_SECONDS, ModelPool

_ID = ModelId(namespace="n", name="m")
_NONE = HistogramSnapshot(upper_bounds=(), counts=(0,), sum=0.0)


def _endpoint(uid: str) -> Endpoint:
    return Endpoint(uid=uid, model=_ID, base_url=f"http://{uid}")


def _load(*, requests: int = 0, ready: bool = True, draining: bool = False) -> Load:
    return Load(
        model="m",
        phase="ready",
        ready=ready,
        draining=draining,
        max_num_seqs=2,
        counters=LoadCounters(requests=requests),
        time_to_first_token_seconds=_NONE,
        inter_token_latency_seconds=_NONE,
        output_tokens=_NONE,
    )


def _pool(*uids: str) -> ModelPool:
    pool = ModelPool(Model(id=_ID, served_name="m"))
    pool.update_endpoints([_endpoint(uid) for uid in uids])
    return pool


def _job(**fields: Any) -> Job:
    values: dict[str, Any] = {
        "model": _ID, "tenant": "t", "priority": 0, "arrived": 0.0, "deadline": 100.0,
        "prompt_tokens": 100.0, "output_tokens": 10.0, "id": "1",
    }  # fmt: skip
    return Job(**{**values, **fields})


def _routable(pool: ModelPool, now: float) -> list[str]:
    return [state.endpoint.uid for state in pool.routable(now)]


def test_an_engine_gets_nothing_before_its_first_word_and_nothing_after_its_last() -> None:
    pool = _pool("a", "b", "c")
    assert _routable(pool, 0.0) == []
    pool.observe_load("a", _load(), 1.0)
    pool.observe_load("b", _load(ready=False), 1.0)
    pool.observe_load("c", _load(draining=True), 1.0)
    assert _routable(pool, 1.0) == ["a"]
    pool.observe_silence("a", is_gone=False)
    assert _routable(pool, 2.0) == ["a"]
    pool.observe_silence("a", is_gone=False)
    assert _routable(pool, 3.0) == []


def test_one_refused_connection_is_enough() -> None:
    pool = _pool("a")
    pool.observe_load("a", _load(), 0.0)
    pool.observe_silence("a", is_gone=True)
    assert _routable(pool, 0.0) == []


def test_an_engine_that_refused_as_draining_is_back_when_it_says_ready() -> None:
    pool = _pool("a")
    pool.observe_load("a", _load(), 0.0)
    pool.states["a"].is_refusing = True
    assert _routable(pool, 0.0) == []
    pool.observe_load("a", _load(), 1.0)
    assert _routable(pool, 1.0) == ["a"]


def test_a_probe_between_two_failures_does_not_make_them_forgotten() -> None:
    pool = _pool("a")
    circuit = pool.states["a"].circuit
    for second in range(3):
        pool.observe_load("a", _load(), float(second))
        circuit.failed(float(second))
    assert circuit.state is CircuitState.OPEN
    assert _routable(pool, 2.5) == []
    pool.observe_load("a", _load(), 3.5)
    assert _routable(pool, 3.5) == ["a"]
    assert circuit.slow_start(3.5) < 1


def test_counters_that_fall_mean_a_restart_and_an_empty_cache() -> None:
    pool = _pool("a")
    pool.observe_load("a", _load(requests=5), 0.0)
    pool.observe_kv("a", KvEvent(sequence=1, snapshot=True, stored=("x", "y")))
    assert pool.index.blocks_of("a") == 2
    pool.observe_load("a", _load(requests=6), 1.0)
    assert pool.index.blocks_of("a") == 2
    pool.observe_load("a", _load(requests=1), 2.0)
    assert pool.index.blocks_of("a") == 0
    assert pool.states["a"].restarts == 1


def test_what_is_known_of_an_engine_outlives_a_snapshot_but_not_its_removal() -> None:
    pool = _pool("a", "b")
    pool.observe_load("a", _load(), 0.0)
    pool.update_endpoints([replace(_endpoint("a"), is_draining=True)])
    assert pool.states["a"].is_ready
    assert list(pool.states) == ["a"]
    assert _routable(pool, 0.0) == []
    pool.update_endpoints([_endpoint("a")])
    assert _routable(pool, 0.0) == ["a"]


def test_a_place_is_taken_on_the_engine_with_the_prefix_until_that_is_full() -> None:
    pool = _pool("a", "b")
    for uid in ("a", "b"):
        pool.observe_load(uid, _load(), 0.0)
    pool.observe_kv("b", KvEvent(sequence=1, snapshot=True, stored=("x", "y")))
    places = []
    for number in range(5):
        grant = place(pool, pool.routable(0.0), _job(id=str(number), blocks=("x", "y")), draw=0.0, now=0.0)
        places.append(None if grant is None else (grant.endpoint.uid, grant.matched_blocks))
    assert places[:2] == [("b", 2), ("b", 2)]
    assert sorted(uid for found in places[2:4] if found for uid in found[:1]) == ["a", "a"]
    assert places[4] is None


def test_an_engine_that_failed_the_request_is_asked_again_only_where_no_other_has_room() -> None:
    pool = _pool("a", "b")
    for uid in ("a", "b"):
        pool.observe_load(uid, _load(), 0.0)
    avoiding = [
        place(pool, pool.routable(0.0), _job(id=str(number), avoid=frozenset("a")), draw=0.0, now=0.0)
        for number in range(3)
    ]
    assert [grant.endpoint.uid if grant else None for grant in avoiding] == ["b", "b", "a"]


def test_a_start_is_measured_from_the_first_who_waits_to_the_first_ready_engine() -> None:
    pool = _pool("a")
    assert pool.retry_after_seconds(0.0, has_routable=False) == UNKNOWN_START_SECONDS
    pool.note_start(has_waiting=True, now=10.0)
    pool.note_start(has_waiting=True, now=12.0)
    assert pool.retry_after_seconds(14.0, has_routable=False) == UNKNOWN_START_SECONDS - 4
    pool.observe_load("a", _load(), 18.0)
    pool.note_start(has_waiting=True, now=18.0)
    assert pool.start_seconds == 8.0
    assert not pool.is_measuring_start
