"""A `StepPlan` as tensors: token ids, positions, block tables and slots of one step.

Loops over rows, never over tokens; decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from modelfleet_kernels import PagedBatch
from torch import Tensor

from modelfleet_engine.step_plan import ScheduledSequence, StepPlan


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepBatch:
    """What the model and the sampler take. T tokens, R sampling rows, Q tokens before prompt tokens to be scored."""

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    paged: PagedBatch
    sampling_rows: list[int]  # R indices into the plan's sequences
    scored_rows: list[int]  # indices into the plan's sequences of the rows that want prompt log probabilities
    output_tokens: Tensor  # [R + Q] int64: the last token of each sampling row, then those of the scored rows
    target_token_ids: Tensor  # [Q] int64: what came after each of the Q tokens
    slots: Tensor  # [R] int64: the state-table row of each sampling row


def build_batch(plan: StepPlan, *, block_tokens: int, last_sampled: Tensor) -> StepBatch:
    """Lays the plan's rows out one after the other; `last_sampled` [max_num_seqs] fills the placeholders."""
    rows = plan.sequences
    query_lengths = np.fromiter((row.computed_tokens for row in rows), np.int64, len(rows))  # [S]
    starts = np.fromiter((row.start_position for row in rows), np.int64, len(rows))  # [S]
    ends = np.cumsum(query_lengths)  # [S]
    row_of_token = np.repeat(np.arange(len(rows)), query_lengths)  # [T]
    positions = np.arange(ends[-1]) + np.repeat(starts - ends + query_lengths, query_lengths)  # [T]
    tables = _block_tables(rows)  # [S, M]
    slots = tables[row_of_token, positions // block_tokens] * block_tokens + positions % block_tokens  # [T]
    sampling_rows = [index for index, row in enumerate(rows) if row.sampling is not None]
    scored_rows = [index for index, row in enumerate(rows) if row.prompt_logprobs is not None]
    first_tokens = ends - query_lengths  # [S]
    output_tokens = ends[sampling_rows] - 1  # [R]
    for index in scored_rows:
        scored = first_tokens[index] + np.arange(len(rows[index].target_token_ids))
        output_tokens = np.concatenate((output_tokens, scored))
    targets = [token for index in scored_rows for token in rows[index].target_token_ids]
    return StepBatch(
        token_ids=_token_ids(rows, first_tokens=first_tokens, last_sampled=last_sampled),
        positions=torch.from_numpy(positions),
        paged=PagedBatch(
            query_lengths=query_lengths.tolist(),
            sequence_lengths=(starts + query_lengths).tolist(),
            block_tables=torch.from_numpy(tables),
            slot_mapping=torch.from_numpy(slots),
        ),
        sampling_rows=sampling_rows,
        scored_rows=scored_rows,
        output_tokens=torch.from_numpy(output_tokens),
        target_token_ids=torch.tensor(targets, dtype=torch.int64),
        slots=torch.tensor([rows[index].slot for index in sampling_rows], dtype=torch.int64),
    )


def _block_tables(rows: tuple[ScheduledSequence, ...]) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """[S, M], padded with block 0: any valid block will do."""
    tables = np.zeros((len(rows), max(len(row.block_table) for row in rows)), np.int64)
    for index, row in enumerate(rows):
        tables[index, : len(row.block_table)] = row.block_table
    return tables


def _token_ids(
    rows: tuple[ScheduledSequence, ...],
    *,
    first_tokens: np.ndarray[tuple[int], np.dtype[np.int64]],
    last_sampled: Tensor,
) -> Tensor:
    """[T]; a placeholder takes what its slot sampled last, without a round trip to the host."""
    placeholder = (0,)
    known = chain.from_iterable(placeholder if row.input_from_previous_step else row.token_ids for row in rows)
    token_ids = torch.from_numpy(np.fromiter(known, np.int64))  # [T]
    waiting = [index for index, row in enumerate(rows) if row.input_from_previous_step]
    if waiting:
        slots = torch.tensor([rows[index].slot for index in waiting], dtype=torch.int64)
        token_ids[torch.from_numpy(first_tokens[waiting])] = last_sampled[slots]
    return token_ids
