"""Continuous batching: which sequences compute how many tokens in the next step, and what a result means.

Pure and deterministic: no torch, no clock, no randomness, so a simulator can run it. It plans step N+1 before the
tokens of step N are known: a sampled token first exists as a placeholder, and the device feeds it to itself.
Where the guess "this sequence goes on" was wrong, the row's output is dropped.

A step holds one token of every decoding sequence, then chunks of prompts as far as the budget goes. Blocks come from
`kv_manager`, places in `waiting_queue`'s order, tokens from `step_budget`; `request_groups` knows who shares a prompt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from modelfleet_api.protocol import StepTime

from modelfleet_engine.kv_manager import KvManager
from modelfleet_engine.lazy_heap import LazyHeap
from modelfleet_engine.request import Admission, FinishReason, GenerationRequest, KvEvents, StepOutputs
from modelfleet_engine.request_groups import RequestGroups
from modelfleet_engine.schedule import PlannedStep, SchedulerLimits, SchedulerStats
from modelfleet_engine.sequence import Sequence
from modelfleet_engine.step_budget import StepBudget, StepTarget
from modelfleet_engine.step_outputs import collect_outputs
from modelfleet_engine.step_plan import ScheduledSequence, StepPlan, StepResult
from modelfleet_engine.step_rows import plan_row
from modelfleet_engine.waiting_queue import WaitingQueue

__all__ = ["PlannedStep", "Scheduler", "SchedulerLimits", "SchedulerStats"]


@dataclass(slots=True)
class _Draft:
    """A plan in the making: tokens per sequence in order, decodes first; the budget left; who lost its place."""

    budget: StepBudget
    rows: dict[Sequence, int] = field(default_factory=dict)
    prompts: list[Sequence] = field(default_factory=list)
    has_preempted: bool = False


class Scheduler:
    """Owns every live sequence. Not thread-safe: one engine loop calls it."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        # The learned time of a step, once there is one: set by whoever learns it.
        self.step_time: StepTime | None = None
        self._kv = KvManager(
            total_blocks=limits.kv_blocks, block_tokens=limits.block_tokens, prefix_caching=limits.prefix_caching
        )
        # Each running sequence must get at least one token in every step, or decodes would starve.
        self._max_running = min(limits.max_num_seqs, limits.max_num_batched_tokens)
        self._free_slots = list(reversed(range(limits.max_num_seqs)))
        self._waiting = WaitingQueue()
        # An ordered set, in the order of admission.
        self._running: dict[Sequence, None] = {}
        self._live: dict[str, Sequence] = {}
        self._groups = RequestGroups()
        self._deadlines: LazyHeap[Sequence] = LazyHeap()
        self._ended: dict[str, FinishReason] = {}
        self._in_flight: deque[PlannedStep] = deque()
        self._next_step_id = 0
        self._arrivals = 0
        self._preemptions = 0
        self._recomputed_tokens = 0
        self._expired = 0

    @property
    def has_work(self) -> bool:
        """Whether any sequence lives or any step is in flight."""
        return bool(self._live or self._in_flight)

    def add(self, request: GenerationRequest, now_seconds: float = 0.0) -> None:
        """Queues a request that arrives at `now_seconds`, on the clock of `plan_step`.

        Raises ValueError for one that could never run: admission must have refused it.
        """
        total = len(request.prompt_token_ids) + request.max_tokens
        capacity = min(self.limits.max_model_len, self.limits.kv_blocks * self.limits.block_tokens)
        if total > capacity or not request.prompt_token_ids or request.max_tokens < 1:
            raise ValueError(
                f"request {request.request_id} has {len(request.prompt_token_ids)} prompt tokens and "
                f"max_tokens {request.max_tokens}; at most {capacity} tokens fit, at least one of each is needed"
            )
        if request.request_id in self._live:
            raise ValueError(f"request {request.request_id} is already being served")
        sequence = Sequence(request, arrival=self._arrivals, arrived_seconds=now_seconds)
        self._groups.join(sequence)
        self._arrivals += 1
        self._live[request.request_id] = sequence
        self._waiting.push(sequence)
        if request.deadline_seconds is not None:
            self._deadlines.push(sequence, key=(request.deadline_seconds,))

    def abort(self, request_id: str) -> bool:
        """Ends a request at once; False if it is not alive (any more). What is in flight for it is dropped."""
        sequence = self._live.get(request_id)
        if sequence is None:
            return False
        sequence.finish_reason = FinishReason.ABORT
        self._remove(sequence)
        return True

    def plan_step(self, now_seconds: float) -> PlannedStep | None:
        """Plans the next step, or None if nothing can be computed before a step in flight is done.

        Requests whose deadline has passed at `now_seconds` end before anything is planned: see `take_ended`.
        """
        self._expire(now_seconds)
        draft = _Draft(budget=StepBudget(tokens=self.limits.max_num_batched_tokens))
        self._plan_decodes(draft)
        self._plan_prompts(draft)
        return self._commit(draft) if draft.rows else None

    def complete_step(self, result: StepResult) -> StepOutputs:
        """Takes the oldest step's result: turns placeholders into tokens, finishes sequences, frees blocks."""
        planned = self._in_flight.popleft()
        if planned.plan.step_id != result.step_id:
            raise RuntimeError(f"result of step {result.step_id} came where {planned.plan.step_id} was due")
        outputs = collect_outputs(planned.plan.sequences, planned.sequences, result)
        for request_id in outputs.finish_reasons:
            self._remove(self._live[request_id])
        return outputs

    def take_ended(self) -> Mapping[str, FinishReason]:
        """Requests that ended without a token since this was last asked: their deadline passed."""
        ended, self._ended = self._ended, {}
        return ended

    def take_kv_events(self) -> KvEvents | None:
        """Which of the gateway's text-block hashes became resident or were evicted since this was last asked."""
        return self._kv.take_events()

    def stats(self) -> SchedulerStats:
        """Depths and counts now."""
        running_tokens = unfilled_tokens = 0
        block_tokens = self.limits.block_tokens
        for sequence in self._running:
            tokens = sequence.total_tokens
            running_tokens += tokens
            unfilled_tokens += max(0, len(sequence.block_table) * block_tokens - tokens)
        blocks = self._kv.blocks
        return SchedulerStats(
            running=len(self._running),
            waiting=len(self._waiting) + self._groups.parked_sequences,
            running_tokens=running_tokens,
            queued_tokens=self._waiting.tokens,
            kv_blocks_used=blocks.used_blocks,
            kv_blocks_total=blocks.total_blocks,
            kv_blocks_cached=blocks.cached_blocks,
            kv_waste_ratio=unfilled_tokens / (blocks.used_blocks * block_tokens) if blocks.used_blocks else 0.0,
            prefix_queried_tokens=self._kv.queried_tokens,
            prefix_hit_tokens=self._kv.hit_tokens,
            preemptions=self._preemptions,
            recomputed_tokens=self._recomputed_tokens,
            expired=self._expired,
            steps=self._next_step_id,
        )

    def check_leaks(self) -> None:
        """Raises RuntimeError if blocks, slots or requests leaked. O(1): counts only, for every idle moment."""
        used_slots = len(self._running)
        if used_slots + len(self._free_slots) != self.limits.max_num_seqs:
            raise RuntimeError(f"{used_slots} slots used, {len(self._free_slots)} free: some leaked")
        placed = used_slots + len(self._waiting) + self._groups.parked_sequences
        if placed != len(self._live):
            raise RuntimeError(f"{len(self._live)} requests are live, but {placed} run or wait")
        blocks = self._kv.blocks
        if blocks.used_blocks + blocks.free_blocks != blocks.total_blocks:
            raise RuntimeError(
                f"{blocks.used_blocks} KV blocks used, {blocks.free_blocks} free, {blocks.total_blocks} in total"
            )
        if not self.has_work and blocks.used_blocks:
            raise RuntimeError(f"idle, yet {blocks.used_blocks} KV blocks are held")

    def check_integrity(self) -> None:
        """`check_leaks`, and the holders and the index of every block: for tests and simulations."""
        self.check_leaks()
        self._kv.blocks.check_integrity()

    def _expire(self, now_seconds: float) -> None:
        """Ends the requests whose deadline has passed, waiting or running: O(log n) for each, O(1) if there is none."""
        while (sequence := self._deadlines.first()) is not None:
            deadline_seconds = sequence.request.deadline_seconds
            if deadline_seconds is None or deadline_seconds > now_seconds:
                return
            sequence.finish_reason = FinishReason.DEADLINE
            self._ended[sequence.request.request_id] = FinishReason.DEADLINE
            self._expired += 1
            self._remove(sequence)

    def _plan_decodes(self, draft: _Draft) -> None:
        """One token for every decoding sequence whose block table can hold it."""
        for sequence in list(self._running):
            # A slot of None: it lost its place to an earlier sequence of this very pass.
            if sequence.slot is None or not sequence.is_decoding or sequence.is_planned_out:
                continue
            if self._grow(sequence, draft):
                draft.rows[sequence] = 1
                draft.budget.tokens -= 1
        if draft.rows and self.step_time is not None and self.limits.itl_target_seconds is not None:
            draft.budget.limit_time(
                StepTarget(seconds=self.limits.itl_target_seconds, step_time=self.step_time),
                decodes=len(draft.rows),
                kv_tokens=sum(sequence.computed_tokens + 1 for sequence in draft.rows),
            )

    def _plan_prompts(self, draft: _Draft) -> None:
        """What decodes left of the budget, for prompts already begun and then new ones, by priority and arrival.

        While there is more than one, each gets its share at most; what then is left goes to the first ones after all.
        """
        begun = [
            sequence
            for sequence in self._running
            if sequence not in draft.rows and not sequence.is_decoding and sequence.remaining_tokens > 0
        ]
        begun.sort(key=lambda sequence: (sequence.due_seconds, sequence.arrival))
        is_shared = len(begun) + len(self._waiting) > 1
        cap = draft.budget.share() if is_shared else draft.budget.tokens
        for sequence in begun:
            self._plan_prompt(sequence, draft, cap=cap)
        if not draft.has_preempted:
            self._admit(draft, cap=cap)
        for sequence in draft.prompts:
            wanted = sequence.remaining_tokens - draft.rows[sequence]
            draft.rows[sequence] += draft.budget.extend(wanted=wanted)

    def _plan_prompt(self, sequence: Sequence, draft: _Draft, *, cap: int) -> None:
        wanted = min(cap, sequence.remaining_tokens)
        granted = draft.budget.grant(wanted=wanted, context_tokens=sequence.computed_tokens)
        if granted:
            draft.rows[sequence] = granted
            draft.prompts.append(sequence)

    def _admit(self, draft: _Draft, *, cap: int) -> None:
        """Starts waiting requests in the queue's order while slots, blocks and budget last."""
        while draft.budget.is_open and len(self._running) < self._max_running:
            sequence = self._waiting.first()
            # A placeholder: preempted with a token in flight; it resumes once that is known.
            if sequence is None or sequence.placeholders:
                return
            if self._groups.must_wait(sequence):
                self._waiting.remove(sequence)
                self._groups.park(sequence)
            elif self._start(sequence):
                self._plan_prompt(sequence, draft, cap=cap)
            else:
                return

    def _start(self, sequence: Sequence) -> bool:
        """Gives the first in the queue a slot and blocks; False if there is no room for it yet."""
        # One block of growth for each running sequence, or admission would cause the next preemption.
        reserved = len(self._running)
        source = self._groups.source_for(sequence)
        if source is None:
            has_started = self._kv.try_start(sequence, reserved_blocks=reserved)
        else:
            has_started = self._kv.try_fork(sequence, source=source, reserved_blocks=reserved)
        if not has_started:
            return False
        self._waiting.remove(sequence)
        sequence.slot = self._free_slots.pop()
        sequence.is_new_in_slot = True
        self._running[sequence] = None
        if not sequence.was_planned:
            sequence.cached_tokens = sequence.computed_tokens
        self._groups.started(sequence)
        return True

    def _grow(self, sequence: Sequence, draft: _Draft) -> bool:
        """Makes room for one more token, preempting if need be. False: it gave way itself."""
        if sequence.computed_tokens < len(sequence.block_table) * self.limits.block_tokens:
            return True
        while self._kv.missing_blocks(sequence):
            victim = max(
                self._running, key=lambda other: (other.request.priority, -other.computed_tokens, other.arrival)
            )
            self._preempt(victim, draft)
            if victim is sequence:
                return False
        self._kv.grow(sequence)
        return True

    def _preempt(self, victim: Sequence, draft: _Draft) -> None:
        """Takes a sequence's blocks and slot; it keeps its tokens and is recomputed when there is room."""
        draft.budget.tokens += draft.rows.pop(victim, 0)
        draft.has_preempted = True
        self._preemptions += 1
        self._release(victim)
        self._waiting.push(victim)

    def _remove(self, sequence: Sequence) -> None:
        """Forgets a request that ended."""
        del self._live[sequence.request.request_id]
        self._deadlines.discard(sequence)
        if sequence.slot is None:
            self._waiting.remove(sequence)
        else:
            self._release(sequence)
        self._groups.leave(sequence)

    def _release(self, sequence: Sequence) -> None:
        """Takes a running sequence's slot and blocks. Both are free at once: the device runs in order."""
        if sequence.slot is None:
            raise RuntimeError(f"request {sequence.request.request_id} holds no slot to release")
        self._free_slots.append(sequence.slot)
        sequence.slot = None
        del self._running[sequence]
        self._kv.release(sequence)
        for waiting in self._groups.released(sequence):
            self._waiting.push(waiting)

    def _commit(self, draft: _Draft) -> PlannedStep:
        """Turns the draft into a frozen plan and advances the sequences as if it were done."""
        step_id = self._next_step_id
        self._next_step_id += 1
        prefill_tokens = sum(draft.rows[sequence] for sequence in draft.prompts)
        kv_tokens = sum(sequence.computed_tokens + count for sequence, count in draft.rows.items())
        admitted = tuple(
            Admission(request_id=sequence.request.request_id, cached_tokens=sequence.cached_tokens)
            for sequence in draft.prompts
            if not sequence.was_planned
        )
        rows = tuple(self._row(sequence, count=count) for sequence, count in draft.rows.items())
        for sequence in draft.prompts:
            if sequence.computed_tokens >= sequence.prompt_tokens:
                for waiting in self._groups.computed(sequence):
                    self._waiting.push(waiting)
        planned = PlannedStep(
            plan=StepPlan(step_id=step_id, sequences=rows, block_copies=self._kv.take_copies()),
            sequences=tuple(draft.rows),
            admitted=admitted,
            prefill_tokens=prefill_tokens,
            kv_tokens=kv_tokens,
        )
        self._in_flight.append(planned)
        return planned

    def _row(self, sequence: Sequence, *, count: int) -> ScheduledSequence:
        """The plan's row for `count` tokens of a sequence, which advances by them."""
        start = sequence.computed_tokens
        if start < sequence.highest_computed_tokens:
            self._recomputed_tokens += min(start + count, sequence.highest_computed_tokens) - start
        row = plan_row(sequence, count=count, blocks=self._kv.blocks.blocks_for(tokens=start + count))
        self._kv.register(sequence)
        return row
