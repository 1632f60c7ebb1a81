"""The engine loop over an asynchronous device: one step ahead, quiet when idle, loud when something breaks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from modelfleet_engine.block_manager import BlockManager
from modelfleet_engine.engine import Abort, Close, Engine, Failed, Submit, Update
from modelfleet_engine.request import FinishReason, KvEvents
from modelfleet_engine.scheduler import Scheduler
from modelfleet_engine.step_plan import ProfiledStep
from modelfleet_engine.step_time import predict_seconds

from tests_engine.fake_device import FakeDevice, expected_tokens
from tests_engine.scheduling import MODEL, VOCAB_SIZE, limits, request


@dataclass
class Outbox:
    """Collects what the engine publishes; `wait_finished` blocks until so many requests ended."""

    updates: list[Update] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def publish(self, message: Update | Failed) -> None:
        with self.changed:
            if isinstance(message, Failed):
                self.failures.append(message.error)
            else:
                self.updates.append(message)
            self.changed.notify_all()

    @property
    def tokens(self) -> dict[str, list[int]]:
        tokens: dict[str, list[int]] = {}
        for update in self.updates:
            for request_id, token_id in zip(update.outputs.request_ids, update.outputs.token_ids, strict=True):
                tokens.setdefault(request_id, []).append(token_id)
        return tokens

    @property
    def finished(self) -> dict[str, FinishReason]:
        return {name: reason for update in self.updates for name, reason in update.outputs.finish_reasons.items()}

    def wait_finished(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.finished) >= count, timeout=10)


def _device(**behaviour: object) -> FakeDevice:
    device = FakeDevice(model=MODEL, vocab_size=VOCAB_SIZE, kv_blocks=64, block_tokens=4)
    for name, value in behaviour.items():
        setattr(device, name, value)
    return device


@contextmanager
def _running(device: FakeDevice) -> Iterator[tuple[Engine, Outbox, threading.Thread]]:
    outbox = Outbox()
    engine = Engine(device=device, scheduler=Scheduler(limits()), publish=outbox.publish)
    thread = threading.Thread(target=engine.run)
    thread.start()
    try:
        yield engine, outbox, thread
    finally:
        engine.send(Close())
        thread.join(timeout=10)
    assert not thread.is_alive()


def test_requests_come_back_with_the_tokens_of_the_model() -> None:
    with _running(_device()) as (engine, outbox, _):
        engine.send(Submit(requests=(request("a", max_tokens=20), request("b", prompt=(9, 8), max_tokens=30))))
        outbox.wait_finished(2)

    assert outbox.tokens == {
        "a": expected_tokens(MODEL, (1, 2, 3), max_tokens=20),
        "b": expected_tokens(MODEL, (9, 8), max_tokens=30),
    }


def test_each_step_is_submitted_before_the_result_of_the_step_before_is_waited_for() -> None:
    device = _device(step_seconds=0.001)
    with _running(device) as (engine, outbox, _):
        engine.send(Submit(requests=(request("a", max_tokens=40),)))
        outbox.wait_finished(1)

    steps = 40
    assert sorted(device.events) == sorted(
        [("submit", step) for step in range(steps)] + [("wait", step) for step in range(steps)]
    )
    order = {event: position for position, event in enumerate(device.events)}
    assert all(order["submit", step + 1] < order["wait", step] for step in range(steps - 1))
    # And not further ahead: a disconnect must not find a queue of steps already submitted.
    assert all(order["wait", step] < order["submit", step + 2] for step in range(steps - 2))


def test_an_idle_engine_uses_no_processor_time() -> None:
    with _running(_device()) as (engine, outbox, _):
        engine.send(Submit(requests=(request("a", max_tokens=5),)))
        outbox.wait_finished(1)
        before = time.process_time()
        time.sleep(0.3)
        used = time.process_time() - before

        assert engine.step_started_seconds is None
    assert used < 0.05


def test_an_abort_is_obeyed_before_the_next_step_is_planned() -> None:
    gate = threading.Event()
    device = _device(gate=gate)
    with _running(device) as (engine, outbox, _):
        engine.send(Submit(requests=(request("gone", max_tokens=60), request("stays", max_tokens=6))))
        while len(device.events) < 3:
            time.sleep(0.001)
        engine.send(Abort(request_ids=("gone",)))
        gate.set()
        outbox.wait_finished(1)

    # Steps 0 and 1 were submitted before; the result of step 0 is not wanted any more.
    assert len(outbox.tokens.get("gone", [])) <= 1
    assert outbox.finished == {"stays": FinishReason.LENGTH}


def test_a_step_that_hangs_can_be_seen_from_outside() -> None:
    gate = threading.Event()
    with _running(_device(gate=gate)) as (engine, outbox, _):
        engine.send(Submit(requests=(request("a", max_tokens=2),)))
        while engine.step_started_seconds is None:
            time.sleep(0.001)
        time.sleep(0.05)
        age = time.monotonic() - engine.step_started_seconds
        gate.set()
        outbox.wait_finished(1)

    assert age >= 0.05


def test_an_error_of_the_device_ends_the_loop_and_is_published() -> None:
    error = RuntimeError("illegal memory access")
    device = _device(fail_at_step=3, failure=error)
    with _running(device) as (engine, outbox, thread):
        engine.send(Submit(requests=(request("a", max_tokens=20),)))
        thread.join(timeout=10)
        assert not thread.is_alive()

    assert outbox.failures == [error]
    assert len(outbox.tokens["a"]) == 3


def test_a_leak_is_found_when_the_engine_gets_idle() -> None:
    outbox = Outbox()
    scheduler = Scheduler(limits())
    engine = Engine(device=_device(), scheduler=scheduler, publish=outbox.publish)
    scheduler._kv.blocks.allocate(count=1)

    engine.run()

    assert [str(error) for error in outbox.failures] == ["idle, yet 1 KV blocks are held"]


def test_an_engine_that_gets_idle_does_not_walk_over_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_manager: BlockManager) -> None:
        raise AssertionError("a hundred thousand blocks take 40 ms, and the next request waits for them")

    monkeypatch.setattr(BlockManager, "check_integrity", fail)
    with _running(_device()) as (engine, outbox, _):
        for name in ("a", "b"):
            engine.send(Submit(requests=(request(name, max_tokens=2),)))
            outbox.wait_finished(1 if name == "a" else 2)

    assert outbox.failures == []


def test_the_stats_count_steps_tokens_and_time() -> None:
    with _running(_device(step_seconds=0.001)) as (engine, outbox, _):
        engine.send(Submit(requests=(request("a", prompt=(1,) * 10, max_tokens=30),)))
        outbox.wait_finished(1)

    stats = outbox.updates[-1].stats
    assert stats.scheduler.steps == 30
    assert stats.computed_tokens == 10 + 29
    assert stats.busy_seconds >= 0.03
    assert stats.step_time is not None
    assert stats.step_time.observed_steps == 24
    assert [admission.request_id for update in outbox.updates for admission in update.admitted] == ["a"]


def test_a_passed_deadline_is_told_at_once_while_the_device_still_computes() -> None:
    gate = threading.Event()
    with _running(_device(gate=gate)) as (engine, outbox, _):
        # The device is held in its first step: nothing completes, and yet the end is published.
        engine.send(Submit(requests=(request("late", max_tokens=60, deadline_seconds=time.monotonic() - 1.0),)))
        outbox.wait_finished(1)
        gate.set()

    assert outbox.finished == {"late": FinishReason.DEADLINE}
    assert outbox.tokens == {}
    assert outbox.updates[-1].stats.scheduler.expired == 1


def test_what_becomes_resident_is_published_in_the_gateways_words() -> None:
    with _running(_device()) as (engine, outbox, _):
        engine.send(Submit(requests=(request("a", prompt=(1,) * 9, max_tokens=2, prefix_hashes=("half", "whole")),)))
        outbox.wait_finished(1)

    events = [update.kv_events for update in outbox.updates if update.kv_events is not None]
    assert events == [KvEvents(stored=("half", "whole"))]


def test_what_the_device_profiled_is_the_first_step_time() -> None:
    scheduler = Scheduler(limits())
    profiled = (ProfiledStep(sequences=1, prefill_tokens=100, kv_tokens=100, seconds=0.2),)

    engine = Engine(device=_device(), scheduler=scheduler, publish=Outbox().publish, profiled=profiled)

    assert scheduler.step_time is not None
    full = predict_seconds(scheduler.step_time, sequences=1, prefill_tokens=100, kv_tokens=100)
    assert full == pytest.approx(0.2, rel=1e-3)
    engine.send(Close())
    engine.run()


def test_the_scheduler_plans_with_what_the_engine_learned() -> None:
    scheduler = Scheduler(limits())
    outbox = Outbox()
    engine = Engine(device=_device(step_seconds=0.001), scheduler=scheduler, publish=outbox.publish)
    thread = threading.Thread(target=engine.run)
    thread.start()
    engine.send(Submit(requests=(request("a", max_tokens=30),)))
    outbox.wait_finished(1)
    engine.send(Close())
    thread.join(timeout=10)

    assert scheduler.step_time is not None
    assert scheduler.step_time == outbox.updates[-1].stats.step_time


def test_requests_that_can_never_be_planned_end_the_loop_loudly() -> None:
    outbox = Outbox()
    scheduler = Scheduler(limits())
    engine = Engine(device=_device(), scheduler=scheduler, publish=outbox.publish)
    scheduler._max_running = 0
    engine.send(Submit(requests=(request("a"),)))

    engine.run()

    (error,) = outbox.failures
    assert str(error).startswith("requests wait, yet no step can be planned: SchedulerStats(running=0, waiting=1,")
