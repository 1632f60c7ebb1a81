"""asyncio on one side, the engine's thread on the other; only frozen messages cross.

Everything here runs on the event loop's thread but the engine itself. A process can replace the thread by
carrying the same `Command`s and `Update`s over a pipe. Must not import torch.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from modelfleet_engine.admission import EngineState, QueueLimits, Refusal, WaitingWork, Work, decide, work_of
from modelfleet_engine.engine import Abort, Close, Engine, EngineStats, Failed, Submit, Update
from modelfleet_engine.errors import GenerationCutError, RequestError
from modelfleet_engine.generations import ChoiceTokens, Generation
from modelfleet_engine.kv_event_hub import KvEventHub
from modelfleet_engine.load import RequestCounts
from modelfleet_engine.request import GenerationRequest, StepOutputs
from modelfleet_engine.scheduler import Scheduler
from modelfleet_engine.step_plan import Device, ProfiledStep

__all__ = ["Bridge", "ChoiceTokens", "Generation"]


class Bridge:
    """Runs the engine's thread and routes its updates to the calls that wait for them."""

    def __init__(
        self,
        *,
        device: Device,
        scheduler: Scheduler,
        counts: RequestCounts,
        queue: QueueLimits,
        on_failure: Callable[[Exception], None],
        profiled: Sequence[ProfiledStep] = (),
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._counts = counts
        self._limits = queue.admission_limits(
            max_num_seqs=scheduler.limits.max_num_seqs,
            max_num_batched_tokens=scheduler.limits.max_num_batched_tokens,
        )
        self._block_tokens = scheduler.limits.block_tokens
        self._on_failure = on_failure
        self._live: dict[str, tuple[Generation, int, float]] = {}
        self._waiting_work = WaitingWork()
        self.kv_events = KvEventHub()
        self._in_preparation = 0
        self._closed_by: GenerationCutError | None = None
        self._engine = Engine(device=device, scheduler=scheduler, publish=self._publish, profiled=profiled)
        self.stats = EngineStats(
            scheduler=scheduler.stats(), computed_tokens=0, busy_seconds=0.0, step_time=scheduler.step_time
        )
        # A daemon: a step that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._engine.run, name="engine", daemon=True)
        self._thread.start()

    @property
    def max_outstanding(self) -> int:
        """How many sequences may run or wait."""
        return self._limits.max_sequences

    @property
    def waiting_work(self) -> Work:
        """What the sequences need that were admitted and are in no step yet."""
        return self._waiting_work.total

    @property
    def outstanding(self) -> int:
        """Sequences admitted and not finished, running or waiting."""
        return len(self._live)

    @property
    def waiting(self) -> int:
        """Sequences admitted and not running, counting those the engine's thread has not seen yet."""
        return max(0, len(self._live) - self.stats.scheduler.running)

    @contextmanager
    def preparing(self, sequences: int) -> Iterator[None]:
        """Holds places for sequences whose prompts are not encoded yet; give them back and `submit` without an await.

        Raises:
            RequestError: 429, the queue is full.
        """
        self._check_room(Work(sequences=sequences))
        self._in_preparation += sequences
        try:
            yield
        finally:
            self._in_preparation -= sequences

    def submit(self, requests: Iterable[GenerationRequest]) -> Generation:
        """Starts the choices of one call.

        Raises:
            RequestError: 429, the queue is full or longer than the call's deadline allows; 504, that has passed.
            GenerationCutError: the engine is gone or the drain has ended.
        """
        batch = tuple(requests)
        if self._closed_by is not None:
            raise self._closed_by
        now = time.monotonic()
        works = work_of(batch, expected_output_tokens=self._counts.output_lengths.mean)
        deadlines = [request.deadline_seconds - now for request in batch if request.deadline_seconds is not None]
        # The choices of one call share its body and headers.
        priority = batch[0].priority
        self._check_room(
            sum((work for _, work in works), Work()), priority=priority, seconds_left=min(deadlines, default=None)
        )
        self._waiting_work.add(works, priority=priority)
        generation = Generation(request_ids=tuple(request.request_id for request in batch), abort=self.abort)
        for index, request in enumerate(batch):
            self._live[request.request_id] = (generation, index, now)
        self._engine.send(Submit(requests=batch))
        return generation

    def abort(self, request_ids: Iterable[str]) -> None:
        """Stops those of the requests that still run, before the next step is planned."""
        live = tuple(request_id for request_id in request_ids if request_id in self._live)
        for request_id in live:
            del self._live[request_id]
            self._waiting_work.release(request_id)
        if live:
            self._engine.send(Abort(request_ids=live))

    def cut_all(self, error: GenerationCutError) -> int:
        """Ends every generation with `error` and admits no more; says how many sequences were cut."""
        self._closed_by = error
        live = dict(self._live)
        self.abort(live)
        for generation, _, _ in live.values():
            generation.fail(error)
        return len(live)

    def close(self) -> None:
        """Ends the engine's thread after the step in flight."""
        self._engine.send(Close())

    def step_age_seconds(self) -> float:
        """How long the step now running has been running; 0 while idle."""
        started = self._engine.step_started_seconds
        return 0.0 if started is None else time.monotonic() - started

    def is_alive(self) -> bool:
        """Whether the engine's thread still runs."""
        return self._thread.is_alive()

    def _check_room(self, call: Work, *, priority: int = 0, seconds_left: float | None = None) -> None:
        state = EngineState(
            outstanding=len(self._live) + self._in_preparation,
            waiting=self._waiting_work.total,
            ahead=self._waiting_work.ahead_of(priority),
            kv_tokens=self.stats.scheduler.kv_blocks_used * self._block_tokens,
            step_time=self.stats.step_time,
        )
        decision = decide(call, state, self._limits, seconds_left=seconds_left)
        if decision.refusal is None:
            return
        self._counts.count_refused(decision.refusal.value)
        is_late = decision.refusal is Refusal.DEADLINE_EXCEEDED
        raise RequestError(
            decision.message,
            status=504 if is_late else 429,
            code=decision.refusal.value,
            retry_after_seconds=None if is_late else decision.retry_after_seconds,
        )

    def _publish(self, message: Update | Failed) -> None:
        """Called on the engine's thread: hands the message to the event loop, which may be gone already."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, message)

    def _deliver(self, message: Update | Failed) -> None:
        if isinstance(message, Failed):
            self.cut_all(GenerationCutError("The engine failed while generating.", status=500, code="engine_failed"))
            self._on_failure(message.error)
            return
        self.stats = message.stats
        if message.kv_events is not None:
            self.kv_events.publish(message.kv_events)
        for admission in message.admitted:
            self._waiting_work.release(admission.request_id)
            entry = self._live.get(admission.request_id)
            if entry is not None:
                generation, index, submitted_seconds = entry
                generation.cached_tokens[index] = admission.cached_tokens
                queue_seconds = max(0.0, message.at_seconds - submitted_seconds)
                self._counts.queue_time.observe(queue_seconds)
                if generation.queue_seconds is None:
                    generation.queue_seconds = queue_seconds
        self._deliver_outputs(message.outputs, at_seconds=message.at_seconds)

    def _deliver_outputs(self, outputs: StepOutputs, *, at_seconds: float) -> None:
        """Hands each live request its share. Absent: aborted on this side while the token was on its way."""
        for request_id, prompt_logprobs in outputs.prompt_logprobs.items():
            if (entry := self._live.get(request_id)) is not None:
                entry[0].news_of(entry[1]).prompt_logprobs.extend(prompt_logprobs)
        for request_id, token_id in zip(outputs.request_ids, outputs.token_ids, strict=True):
            if (entry := self._live.get(request_id)) is not None:
                news = entry[0].news_of(entry[1])
                news.token_ids.append(token_id)
                news.at_seconds.append(at_seconds)
                if request_id in outputs.logprobs:
                    news.logprobs.append(outputs.logprobs[request_id])
        for request_id, reason in outputs.finish_reasons.items():
            self._waiting_work.release(request_id)
            if (entry := self._live.pop(request_id, None)) is not None:
                entry[0].news_of(entry[1]).finish_reason = reason
