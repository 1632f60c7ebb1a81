"""Workers: what each ending of a pass leads to, and that no pass stops another."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import pytest
from modelfleet_kube.backoff import Backoff
from modelfleet_kube.dirty_set import DirtySet
from modelfleet_kube.errors import ForbiddenError, KubeError, ProtocolError, UnavailableError
from modelfleet_kube.resources import ObjectKey
from modelfleet_operator.metrics import Metrics
from modelfleet_operator.workers import STUCK_SECONDS, USER_ERROR_RETRY_SECONDS, PassResult, WorkerPool

A, B = ObjectKey("ns", "a"), ObjectKey("ns", "b")


class Harness:
    """A running pool whose passes end as told, on a clock that tests set."""

    def __init__(self) -> None:
        self.now = 0.0
        self.metrics = Metrics()
        self.passes: list[ObjectKey] = []
        self.endings: dict[ObjectKey, list[Exception | PassResult]] = {}
        self.blocked: dict[ObjectKey, asyncio.Event] = {}
        self.dirty: DirtySet[ObjectKey] = DirtySet(
            clock=lambda: self.now, random_unit=lambda: 1.0, backoff=Backoff(initial_seconds=8.0)
        )
        self.pool = WorkerPool(self.dirty, self._make_pass, metrics=self.metrics, clock=lambda: self.now)

    async def _make_pass(self, key: ObjectKey) -> PassResult:
        self.passes.append(key)
        if key in self.blocked:
            await self.blocked[key].wait()
        endings = self.endings.get(key)
        ending = endings.pop(0) if endings else PassResult()
        if isinstance(ending, Exception):
            raise ending
        return ending

    def count(self, result: str) -> float:
        return self.metrics.registry.get_sample_value("modelfleet_operator_reconciles_total", {"result": result}) or 0.0

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    async def at(self, now: float) -> list[ObjectKey]:
        """The passes made once the clock shows `now`."""
        self.now = now
        before = len(self.passes)
        # Waiting workers sleep on the loop's clock; a nudge makes them look at ours.
        self.dirty.add(ObjectKey("nudge", str(now)))
        await self.settle()
        return [key for key in self.passes[before:] if key.namespace != "nudge"]


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    harness = Harness()
    task = asyncio.create_task(harness.pool.run(count=2))
    yield harness
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("error", "delay_seconds", "result"),
    [
        (UnavailableError("busy", code=503), 8.0, "not-yet"),
        (UnavailableError("busy", code=429, retry_after_seconds=20.0), 20.0, "not-yet"),
        (ForbiddenError("no", code=403), USER_ERROR_RETRY_SECONDS, "user"),
        (ProtocolError("what", code=405), 8.0, "bug"),
        (ZeroDivisionError("oops"), 8.0, "bug"),
    ],
)
async def test_a_failed_pass_comes_again_after_the_delay_of_its_kind(
    harness: Harness, error: Exception, delay_seconds: float, result: str
) -> None:
    harness.endings[A] = [error]
    harness.dirty.add(A)
    await harness.settle()
    assert await harness.at(delay_seconds - 0.01) == []
    assert await harness.at(delay_seconds) == [A]
    assert harness.count(result) == 1


async def test_a_bug_is_told_with_its_traceback_and_the_others_go_on(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    harness.endings[A] = [ZeroDivisionError("oops")]
    with caplog.at_level(logging.ERROR):
        harness.dirty.add(A)
        harness.dirty.add(B)
        await harness.settle()
    assert sorted(harness.passes) == [A, B]
    assert [record.exc_info is not None for record in caplog.records] == [True]
    assert "a bug in the pass over ns/a" in caplog.text


async def test_delays_grow_until_a_pass_succeeds(harness: Harness) -> None:
    harness.endings[A] = [UnavailableError("busy"), UnavailableError("busy"), PassResult(), UnavailableError("busy")]
    harness.dirty.add(A)
    await harness.settle()
    assert await harness.at(8.0) == [A]
    assert (await harness.at(23.9), await harness.at(24.0)) == ([], [A])
    harness.dirty.add(A)
    await harness.settle()
    assert (await harness.at(31.9), await harness.at(32.0)) == ([], [A])


@pytest.mark.parametrize(
    ("ending", "result"),
    [
        (PassResult(requeue_after_seconds=5.0), "unchanged"),
        (PassResult(written=2, requeue_after_seconds=5.0), "written"),
    ],
)
async def test_a_pass_can_ask_to_be_made_again(harness: Harness, ending: PassResult, result: str) -> None:
    harness.endings[A] = [ending]
    harness.dirty.add(A)
    await harness.settle()
    assert (await harness.at(4.9), await harness.at(5.0)) == ([], [A])
    assert harness.count(result) >= 1


async def test_a_pass_that_never_ends_is_reported_and_does_not_hold_up_the_others(harness: Harness) -> None:
    harness.blocked[A] = asyncio.Event()
    harness.dirty.add(A)
    await harness.settle()
    assert await harness.at(STUCK_SECONDS) == []
    assert harness.pool.stuck() is None
    harness.now = STUCK_SECONDS + 1
    assert harness.pool.stuck() == "the pass over ns/a has been running for 301 s"
    harness.dirty.add(B)
    await harness.settle()
    assert harness.passes[-1] == B
    harness.blocked[A].set()
    await harness.settle()
    assert harness.pool.stuck() is None


def test_errors_of_the_client_are_the_only_ones_that_are_not_bugs() -> None:
    kinds: list[Callable[[str], Exception]] = [UnavailableError, ForbiddenError, ProtocolError]
    assert all(isinstance(kind("x"), KubeError) for kind in kinds)


async def test_a_thousand_passes_that_write_nothing_let_everything_else_run_between_them() -> None:
    harness = Harness()
    for number in range(1000):
        harness.dirty.add(ObjectKey("ns", str(number)))
    running = asyncio.create_task(harness.pool.run(count=1))
    turns = 0
    while len(harness.passes) < 1000:
        await asyncio.sleep(0)
        turns += 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert turns >= 1000
