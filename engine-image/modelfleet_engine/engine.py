"""The engine loop: schedule -> submit -> wait for the step before -> postprocess, in a thread of its own.

The host works one step ahead: step N+1 is submitted before the result of step N is waited for. Everything that
enters is a `Command`, everything that leaves is an `Update`, so a process can take the thread's place.
Must not import torch or asyncio.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from modelfleet_api.protocol import StepTime

from modelfleet_engine.request import Admission, GenerationRequest, KvEvents, StepOutputs
from modelfleet_engine.scheduler import PlannedStep, Scheduler, SchedulerStats
from modelfleet_engine.step_plan import Device, ProfiledStep, StepResult
from modelfleet_engine.step_time import StepTimeFit


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """Start these requests (the choices of one call)."""

    requests: tuple[GenerationRequest, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    """Stop these requests: nobody waits for them any more."""

    request_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """End the loop; what is in flight is dropped."""


Command = Submit | Abort | Close


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """The scheduler's depths, and what the steps so far cost."""

    scheduler: SchedulerStats
    computed_tokens: int
    busy_seconds: float
    step_time: StepTime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What one step brought. `at_seconds` is the engine's monotonic clock when the result was there.

    There are updates between steps too: for requests whose deadline passed, and when an abort leaves nothing to do.
    """

    at_seconds: float
    outputs: StepOutputs
    admitted: tuple[Admission, ...]
    stats: EngineStats
    kv_events: KvEvents | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The loop ended with this error; nothing will follow."""

    error: Exception


Publish = Callable[[Update | Failed], None]


class Engine:
    """One device, one scheduler, one loop. `run` is the thread's target; `send` may be called from any thread.

    `profiled` are steps that the device measured before: what a step costs is known from the first request on.
    """

    def __init__(
        self, *, device: Device, scheduler: Scheduler, publish: Publish, profiled: Sequence[ProfiledStep] = ()
    ) -> None:
        self._device = device
        self._scheduler = scheduler
        self._publish = publish
        self._inbox: SimpleQueue[Command] = SimpleQueue()
        self._in_flight: list[PlannedStep] = []
        self._admitted: list[Admission] = []
        self._step_time_fit = StepTimeFit(profiled)
        scheduler.step_time = self._step_time_fit.latest
        self._computed_tokens = 0
        self._busy_seconds = 0.0
        self._is_closed = False
        # Monotonic time at which the step now going on began; None while idle. Read by the watchdog.
        self.step_started_seconds: float | None = None

    def send(self, command: Command) -> None:
        """Hands the loop a command; it is obeyed before the next step is planned."""
        self._inbox.put(command)

    def run(self) -> None:
        """Loops until `Close` or an error; an error is published as `Failed`, never swallowed."""
        try:
            while not self._is_closed:
                self._obey_commands()
                self.step()
        except Exception as error:
            self._publish(Failed(error=error))
        finally:
            self.step_started_seconds = None
            self._device.close()

    def step(self) -> None:
        """Submits the next step if there is one, then takes the result of the step before it."""
        self.step_started_seconds = time.monotonic()
        planned = None if self._is_closed else self._plan(now_seconds=self.step_started_seconds)
        # With a step just submitted the one before it may run or be done; wait only for that one.
        if len(self._in_flight) > (0 if planned is None else 1):
            self._complete(self._device.wait())

    def _plan(self, *, now_seconds: float) -> PlannedStep | None:
        """Plans and submits the next step; publishes at once which requests are past their deadline."""
        planned = self._scheduler.plan_step(now_seconds)
        if ended := self._scheduler.take_ended():
            self._publish_update(outputs=StepOutputs(finish_reasons=ended))
        if planned is not None:
            self._device.submit(planned.plan)
            self._in_flight.append(planned)
            self._admitted.extend(planned.admitted)
        elif self._scheduler.has_work and not self._in_flight:
            raise RuntimeError(f"requests wait, yet no step can be planned: {self._scheduler.stats()}")
        return planned

    def _obey_commands(self) -> None:
        """Takes all commands there are; with nothing to compute, sleeps until there is one."""
        if not self._scheduler.has_work:
            self._scheduler.check_leaks()
            self.step_started_seconds = None
            self._obey(self._inbox.get())
        while True:
            try:
                self._obey(self._inbox.get_nowait())
            except Empty:
                return

    def _obey(self, command: Command) -> None:
        match command:
            case Submit(requests=requests):
                for request in requests:
                    self._scheduler.add(request, time.monotonic())
            case Abort(request_ids=request_ids):
                for request_id in request_ids:
                    self._scheduler.abort(request_id)
                if not self._scheduler.has_work:
                    self._publish_update(outputs=StepOutputs())
            case Close():
                self._is_closed = True

    def _complete(self, result: StepResult) -> None:
        planned = self._in_flight.pop(0)
        outputs = self._scheduler.complete_step(result)
        self._computed_tokens += sum(row.computed_tokens for row in planned.plan.sequences)
        self._busy_seconds += result.busy_seconds
        self._step_time_fit.observe(
            sequences=len(planned.sequences),
            prefill_tokens=planned.prefill_tokens,
            kv_tokens=planned.kv_tokens,
            seconds=result.busy_seconds,
        )
        self._scheduler.step_time = self._step_time_fit.latest
        self._publish_update(outputs=outputs)

    def _publish_update(self, *, outputs: StepOutputs) -> None:
        admitted, self._admitted = tuple(self._admitted), []
        stats = EngineStats(
            scheduler=self._scheduler.stats(),
            computed_tokens=self._computed_tokens,
            busy_seconds=self._busy_seconds,
            step_time=self._step_time_fit.latest,
        )
        self._publish(
            Update(
                at_seconds=time.monotonic(),
                outputs=outputs,
                admitted=admitted,
                stats=stats,
                kv_events=self._scheduler.take_kv_events(),
            )
        )
