"""Repetition, presence and frequency penalties over per-slot token counts, as vLLM defines them.

Presence and frequency count generated tokens; repetition looks at prompt and generated tokens. A generated token is
counted when it is computed as an input, so a sequence recomputed after preemption counts each token once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from modelfleet_engine.step_plan import SamplingParameters, ScheduledSequence, StepPlan


@dataclass(slots=True, kw_only=True)
class _History:
    """What is known of a slot before its first penalized draw; its table row is filled only then."""

    prompt: tuple[int, ...]
    generated: list[int] = field(default_factory=list)
    is_counted: bool = False


class PenaltyTables:
    """Counts per slot and token. A row is touched only once its sequence asks for a penalty."""

    def __init__(self, *, max_num_seqs: int, vocab_size: int) -> None:
        shape = (max_num_seqs, vocab_size)
        # numpy's zeros are not resident until written; torch's are.
        self._generated = torch.from_numpy(np.zeros(shape, np.int32))  # [max_num_seqs, V]
        self._in_prompt = torch.from_numpy(np.zeros(shape, np.bool_))  # [max_num_seqs, V]
        self._histories: dict[int, _History] = {}

    def observe(self, plan: StepPlan, *, last_sampled: Tensor) -> None:
        """Notes the tokens a step computes, before it samples. last_sampled [max_num_seqs] int64."""
        for row in plan.sequences:
            if row.is_first_chunk:
                self._histories[row.slot] = _History(prompt=row.prompt_token_ids)
            history = self._histories.get(row.slot)
            if history is None:
                continue
            if row.sampling is not None and not has_penalties(row.sampling):
                del self._histories[row.slot]
                continue
            self._count(row, history, last_sampled)

    def apply(self, logits: Tensor, rows: list[ScheduledSequence]) -> None:
        """Changes logits [R, V] float32 of the rows that ask for a penalty, in place."""
        chosen = [(index, row) for index, row in enumerate(rows) if row.sampling and has_penalties(row.sampling)]
        if not chosen:
            return
        indices = [index for index, _ in chosen]
        slots = [row.slot for _, row in chosen]
        parameters = [row.sampling for _, row in chosen if row.sampling]
        repetition = _column([item.repetition_penalty for item in parameters])  # [R', 1]
        presence = _column([item.presence_penalty for item in parameters])
        frequency = _column([item.frequency_penalty for item in parameters])
        counts = self._generated[slots]  # [R', V]
        seen = (counts > 0) | self._in_prompt[slots]  # [R', V]
        picked = logits[indices]  # [R', V]
        repeated = torch.where(picked > 0, picked / repetition, picked * repetition)
        picked = torch.where(seen, repeated, picked)
        picked -= frequency * counts
        picked -= presence * (counts > 0)
        logits[indices] = picked

    def _count(self, row: ScheduledSequence, history: _History, last_sampled: Tensor) -> None:
        if row.input_from_previous_step:
            known = [int(last_sampled[row.slot])]
        else:
            known = list(row.token_ids[max(0, len(history.prompt) - row.start_position) :])
        if history.is_counted:
            self._add(row.slot, known)
            return
        history.generated += known
        if row.sampling is not None:
            self._generated[row.slot].zero_()
            self._in_prompt[row.slot].zero_()
            self._in_prompt[row.slot, list(history.prompt)] = True
            self._add(row.slot, history.generated)
            history.generated = []
            history.is_counted = True

    def _add(self, slot: int, token_ids: list[int]) -> None:
        if token_ids:
            tokens = torch.tensor(token_ids, dtype=torch.int64)
            self._generated[slot].index_add_(0, tokens, torch.ones(len(token_ids), dtype=torch.int32))


def has_penalties(sampling: SamplingParameters) -> bool:
    """Whether any of the three is on."""
    neutral = (0.0, 0.0, 1.0)
    return (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) != neutral


def _column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None]
