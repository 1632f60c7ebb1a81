"""Repetition, presence and frequency penalties over the tokens of each slot's sequence, as vLLM defines them.

Presence and frequency count generated tokens; repetition looks at prompt and generated tokens. What is counted is
exactly the sequence: its first row brings the prompt and what was generated before a preemption, and every token
computed at a later position is one more generated token, whatever was cached, chunked, recomputed or forked.

A sequence's counts hold its distinct tokens, not the vocabulary: memory and time grow with what it said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modelfleet_engine.step_plan import SamplingParameters, ScheduledSequence, StepPlan


class _TokenCounts:
    """The distinct tokens of one sequence and how often each was generated (0: in the prompt alone)."""

    __slots__ = ("generated", "token_ids")

    def __init__(self, prompt: Sequence[int], generated: Sequence[int]) -> None:
        every = np.fromiter((*prompt, *generated), np.int64, len(prompt) + len(generated))
        self.token_ids = np.unique(every)  # [n], sorted
        self.generated = np.zeros(len(self.token_ids), np.int32)  # [n]
        np.add.at(self.generated, np.searchsorted(self.token_ids, every[len(prompt) :]), 1)

    def add(self, token_id: int) -> None:
        """Counts one generated token."""
        at = int(np.searchsorted(self.token_ids, token_id))
        if at == len(self.token_ids) or self.token_ids[at] != token_id:
            self.token_ids = np.insert(self.token_ids, at, token_id)
            self.generated = np.insert(self.generated, at, 0)
        self.generated[at] += 1


@dataclass(slots=True, kw_only=True)
class _History:
    """A slot's sequence. `counts` are made at its first penalized draw; until then its tokens are kept as they came."""

    prompt: tuple[int, ...]
    generated: list[int]
    known_tokens: int
    counts: _TokenCounts | None = None

    def add(self, token_ids: Sequence[int]) -> None:
        self.known_tokens += len(token_ids)
        if self.counts is None:
            self.generated += token_ids
        else:
            for token_id in token_ids:
                self.counts.add(token_id)

    def counted(self) -> _TokenCounts:
        if self.counts is None:
            self.counts = _TokenCounts(self.prompt, self.generated)
            self.prompt, self.generated = (), []
        return self.counts


class PenaltyTables:
    """What has been said per slot; slots whose sequence asks for no penalty keep nothing."""

    def __init__(self) -> None:
        self._histories: dict[int, _History] = {}

    def observe(self, plan: StepPlan, *, last_sampled: Tensor) -> None:
        """Notes the tokens a step computes, before it samples. last_sampled [max_num_seqs] int64."""
        for row in plan.sequences:
            if row.is_first_chunk:
                self._histories[row.slot] = _History(
                    prompt=row.prompt_token_ids,
                    generated=list(row.generated_token_ids),
                    known_tokens=len(row.prompt_token_ids) + len(row.generated_token_ids),
                )
            history = self._histories.get(row.slot)
            if history is None:
                continue
            if row.sampling is not None and not has_penalties(row.sampling):
                del self._histories[row.slot]
                continue
            first_new = max(0, history.known_tokens - row.start_position)
            if first_new < row.computed_tokens:
                computed = (int(last_sampled[row.slot]),) if row.input_from_previous_step else row.token_ids
                history.add(computed[first_new:])

    def apply(self, logits: Tensor, rows: list[ScheduledSequence]) -> None:
        """Changes logits [R, V] float32 of the rows that ask for a penalty, in place.

        Raises:
            KeyError: a row asks for a penalty and its slot's first row was never observed.
        """
        chosen = [(index, row, row.sampling) for index, row in enumerate(rows) if row.sampling]
        chosen = [entry for entry in chosen if has_penalties(entry[2])]
        if not chosen:
            return
        counts = [self._histories[row.slot].counted() for _, row, _ in chosen]
        sizes = torch.tensor([len(item.token_ids) for item in counts])
        # N distinct tokens over all rows, one row after the other.
        row_of = _spread([index for index, _, _ in chosen], sizes)  # [N]
        token_ids = torch.from_numpy(np.concatenate([item.token_ids for item in counts]))  # [N]
        generated = torch.from_numpy(np.concatenate([item.generated for item in counts]))  # [N]
        repetition = _spread([item.repetition_penalty for _, _, item in chosen], sizes)  # [N]
        picked = logits[row_of, token_ids]  # [N]
        picked = torch.where(picked > 0, picked / repetition, picked * repetition)
        picked -= _spread([item.frequency_penalty for _, _, item in chosen], sizes) * generated
        picked -= _spread([item.presence_penalty for _, _, item in chosen], sizes) * (generated > 0)
        logits[row_of, token_ids] = picked


def has_penalties(sampling: SamplingParameters) -> bool:
    """Whether any of the three is on."""
    neutral = (0.0, 0.0, 1.0)
    return (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) != neutral


def _spread(values: Sequence[float], sizes: Tensor) -> Tensor:
    """One value per row -> one per distinct token of the rows, [N]."""
    return torch.tensor(values).repeat_interleave(sizes)
