"""Continuous batching: which sequences compute how many tokens in the next step, and what a result means.

Pure and deterministic: no torch, no clock, no randomness, so a simulator can run it. It plans step N+1 before the
tokens of step N are known: a sampled token first exists as a placeholder, and the device feeds it to itself.
Where the guess "this sequence goes on" was wrong, the row's output is dropped, and the sequence's blocks are
reused only after the last step that may write to them is done.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from modelfleet_engine.block_manager import BlockManager
from modelfleet_engine.request import Admission, FinishReason, GenerationRequest, Sequence, StepOutputs
from modelfleet_engine.step_plan import ScheduledSequence, StepPlan, StepResult


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """What one step and the whole KV cache may hold."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    kv_blocks: int
    block_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """A plan, whose rows it holds, and its size in the terms of the step-time model."""

    plan: StepPlan
    sequences: tuple[Sequence, ...]
    # Requests that are in a step for the first time (not those that resume after a preemption).
    admitted: tuple[Admission, ...]
    prefill_tokens: int
    kv_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStats:
    """Depths and cumulative counts at one moment. Queued tokens are those waiting requests still must compute."""

    running: int
    waiting: int
    running_tokens: int
    queued_tokens: int
    kv_blocks_used: int
    kv_blocks_total: int
    preemptions: int
    recomputed_tokens: int
    steps: int


@dataclass(slots=True)
class _Draft:
    """A plan in the making: tokens per sequence in order, the budget left, and who lost its place."""

    budget: int
    rows: dict[Sequence, int] = field(default_factory=dict)
    has_preempted: bool = False


class Scheduler:
    """Owns every live sequence. Not thread-safe: one engine loop calls it."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self._blocks = BlockManager(total_blocks=limits.kv_blocks, block_tokens=limits.block_tokens)
        # Each running sequence must get at least one token in every step, or decodes would starve.
        self._max_running = min(limits.max_num_seqs, limits.max_num_batched_tokens)
        self._free_slots = list(reversed(range(limits.max_num_seqs)))
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._live: dict[str, Sequence] = {}
        self._in_flight: deque[PlannedStep] = deque()
        # Blocks of gone sequences, with the last step that may still write to them.
        self._pending_release: deque[tuple[int, list[int]]] = deque()
        self._completed_step_id = -1
        self._next_step_id = 0
        self._arrivals = 0
        self._preemptions = 0
        self._recomputed_tokens = 0

    @property
    def has_work(self) -> bool:
        """Whether any sequence lives or any step is in flight."""
        return bool(self._live or self._in_flight)

    def add(self, request: GenerationRequest) -> None:
        """Queues a request. Raises ValueError for one that could never run: admission must have refused it."""
        total = len(request.prompt_token_ids) + request.max_tokens
        capacity = min(self.limits.max_model_len, self.limits.kv_blocks * self.limits.block_tokens)
        if total > capacity or not request.prompt_token_ids or request.max_tokens < 1:
            raise ValueError(
                f"request {request.request_id} has {len(request.prompt_token_ids)} prompt tokens and "
                f"max_tokens {request.max_tokens}; at most {capacity} tokens fit, at least one of each is needed"
            )
        if request.request_id in self._live:
            raise ValueError(f"request {request.request_id} is already being served")
        sequence = Sequence(request, arrival=self._arrivals)
        self._arrivals += 1
        self._live[request.request_id] = sequence
        self._waiting.append(sequence)

    def abort(self, request_id: str) -> bool:
        """Ends a request at once; False if it is not alive (any more). What is in flight for it is dropped."""
        sequence = self._live.get(request_id)
        if sequence is None:
            return False
        sequence.finish_reason = FinishReason.ABORT
        self._remove(sequence)
        return True

    def plan_step(self) -> PlannedStep | None:
        """Plans the next step, or None if nothing can be computed before a step in flight is done."""
        draft = _Draft(budget=self.limits.max_num_batched_tokens)
        self._plan_decodes(draft)
        self._plan_prefills(draft)
        if not draft.has_preempted:
            self._admit(draft)
        if not draft.rows:
            return None
        return self._commit(draft)

    def complete_step(self, result: StepResult) -> StepOutputs:
        """Takes the oldest step's result: turns placeholders into tokens, finishes sequences, frees blocks."""
        planned = self._in_flight.popleft()
        if planned.plan.step_id != result.step_id:
            raise RuntimeError(f"result of step {result.step_id} came where {planned.plan.step_id} was due")
        token_of: dict[str, int] = {}
        finish_reasons: dict[str, FinishReason] = {}
        rows = zip(planned.sequences, planned.plan.sequences, result.sampled_token_ids, strict=True)
        for sequence, row, token_id in rows:
            if row.sampling is None:
                continue
            if token_id is None:
                raise RuntimeError(f"step {result.step_id} returned no token for slot {row.slot}")
            sequence.placeholders -= 1
            if sequence.finish_reason is not None:
                continue  # it stopped a step earlier, or was aborted: this token was one too many
            reason = sequence.append(token_id)
            request_id = sequence.request.request_id
            token_of[request_id] = token_id
            if reason is not None:
                finish_reasons[request_id] = reason
                self._remove(sequence)
        self._completed_step_id = result.step_id
        while self._pending_release and self._pending_release[0][0] <= self._completed_step_id:
            self._blocks.release(self._pending_release.popleft()[1])
        return StepOutputs(
            request_ids=tuple(token_of), token_ids=tuple(token_of.values()), finish_reasons=finish_reasons
        )

    def stats(self) -> SchedulerStats:
        """Depths and counts now."""
        return SchedulerStats(
            running=len(self._running),
            waiting=len(self._waiting),
            running_tokens=sum(sequence.total_tokens for sequence in self._running),
            queued_tokens=sum(sequence.total_tokens for sequence in self._waiting),
            kv_blocks_used=self._blocks.used_blocks,
            kv_blocks_total=self._blocks.total_blocks,
            preemptions=self._preemptions,
            recomputed_tokens=self._recomputed_tokens,
            steps=self._next_step_id,
        )

    def check_integrity(self) -> None:
        """Raises RuntimeError if blocks or slots leaked. Cheap enough for every idle moment."""
        self._blocks.check_integrity()
        used_slots = len(self._running)
        if used_slots + len(self._free_slots) != self.limits.max_num_seqs:
            raise RuntimeError(f"{used_slots} slots used, {len(self._free_slots)} free: some leaked")
        if not self.has_work and (self._blocks.used_blocks or self._pending_release):
            raise RuntimeError(f"idle, yet {self._blocks.used_blocks} KV blocks are held")

    def _plan_decodes(self, draft: _Draft) -> None:
        """One token for every decoding sequence whose block table can hold it."""
        for sequence in list(self._running):
            # A slot of None: it lost its place to an earlier sequence of this very pass.
            if sequence.slot is None or not sequence.is_decoding or sequence.is_planned_out:
                continue
            if self._grow(sequence, draft):
                draft.rows[sequence] = 1
                draft.budget -= 1

    def _plan_prefills(self, draft: _Draft) -> None:
        """The next chunk of every admitted prompt, oldest first, as far as the budget goes."""
        for sequence in self._running:
            remaining = sequence.total_tokens - sequence.computed_tokens
            if draft.budget < 1:
                return
            if sequence.is_decoding or remaining < 1 or sequence in draft.rows:
                continue
            draft.rows[sequence] = min(draft.budget, remaining)
            draft.budget -= draft.rows[sequence]

    def _admit(self, draft: _Draft) -> None:
        """Starts waiting requests in order of arrival (preempted ones first) while slots and blocks last."""
        while self._waiting and draft.budget > 0 and len(self._running) < self._max_running:
            sequence = self._waiting[0]
            if sequence.placeholders:
                return  # preempted with a token in flight: it resumes once that is known
            needed = self._blocks.blocks_for(tokens=sequence.known_tokens)
            # One block of growth for each running sequence, or admission would cause the next preemption.
            if self._blocks.free_blocks < needed + len(self._running):
                return
            self._waiting.popleft()
            sequence.block_table = self._blocks.allocate(count=needed)
            sequence.slot = self._free_slots.pop()
            self._running.append(sequence)
            draft.rows[sequence] = min(draft.budget, sequence.known_tokens)
            draft.budget -= draft.rows[sequence]

    def _grow(self, sequence: Sequence, draft: _Draft) -> bool:
        """Makes room for one more token, preempting if need be. False: not in this step."""
        needed = self._blocks.blocks_for(tokens=sequence.computed_tokens + 1) - len(sequence.block_table)
        while self._blocks.free_blocks < needed:
            pending = sum(len(blocks) for _, blocks in self._pending_release)
            if self._blocks.free_blocks + pending >= needed:
                return False  # enough comes free with the step in flight
            victim = min(self._running, key=lambda other: (other.computed_tokens, -other.arrival))
            self._preempt(victim, draft)
            if victim is sequence:
                return False
        sequence.block_table.extend(self._blocks.allocate(count=max(0, needed)))
        return True

    def _preempt(self, victim: Sequence, draft: _Draft) -> None:
        """Takes a sequence's blocks and slot; it keeps its tokens and is recomputed when there is room."""
        draft.budget += draft.rows.pop(victim, 0)
        draft.has_preempted = True
        self._preemptions += 1
        self._recomputed_tokens += victim.computed_tokens
        self._running.remove(victim)
        self._release(victim)
        victim.computed_tokens = 0
        self._waiting.appendleft(victim)

    def _remove(self, sequence: Sequence) -> None:
        """Forgets a finished sequence."""
        del self._live[sequence.request.request_id]
        if sequence.slot is None:
            self._waiting.remove(sequence)
        else:
            self._running.remove(sequence)
            self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        """Gives back the slot at once (the device runs in order) and the blocks when no step writes to them."""
        if sequence.slot is None:
            raise RuntimeError(f"request {sequence.request.request_id} holds no slot to release")
        self._free_slots.append(sequence.slot)
        sequence.slot = None
        blocks, sequence.block_table = sequence.block_table, []
        if sequence.last_step_id > self._completed_step_id:
            # The newest step in flight: keeps the queue in order, and at most one step later than needed.
            self._pending_release.append((self._next_step_id - 1, blocks))
        else:
            self._blocks.release(blocks)

    def _commit(self, draft: _Draft) -> PlannedStep:
        """Turns the draft into a frozen plan and advances the sequences as if it were done."""
        step_id = self._next_step_id
        self._next_step_id += 1
        rows: list[ScheduledSequence] = []
        admitted: list[Admission] = []
        prefill_tokens = kv_tokens = 0
        for sequence, count in draft.rows.items():
            kv_tokens += sequence.computed_tokens + count
            prefill_tokens += 0 if sequence.is_decoding else count
            if sequence.last_step_id < 0:
                admitted.append(Admission(request_id=sequence.request.request_id, cached_tokens=0))
            rows.append(self._row(sequence, count=count))
            sequence.last_step_id = step_id
        planned = PlannedStep(
            plan=StepPlan(step_id=step_id, sequences=tuple(rows)),
            sequences=tuple(draft.rows),
            admitted=tuple(admitted),
            prefill_tokens=prefill_tokens,
            kv_tokens=kv_tokens,
        )
        self._in_flight.append(planned)
        return planned

    def _row(self, sequence: Sequence, *, count: int) -> ScheduledSequence:
        """The plan's row for `count` tokens of a sequence, which advances by them."""
        if sequence.slot is None:
            raise RuntimeError(f"request {sequence.request.request_id} is planned without a slot")
        start = sequence.computed_tokens
        is_first_chunk = start == 0
        from_previous_step = start >= sequence.known_tokens
        is_sampled = start + count == sequence.total_tokens
        blocks = self._blocks.blocks_for(tokens=start + count)
        row = ScheduledSequence(
            slot=sequence.slot,
            token_ids=() if from_previous_step else sequence.token_ids(start=start, count=count),
            input_from_previous_step=from_previous_step,
            start_position=start,
            block_table=tuple(sequence.block_table[:blocks]),
            sampling=sequence.sampling_for_next() if is_sampled else None,
            is_first_chunk=is_first_chunk,
            prompt_token_ids=sequence.request.prompt_token_ids if is_first_chunk else (),
        )
        sequence.computed_tokens += count
        sequence.placeholders += 1 if is_sampled else 0
        return row
