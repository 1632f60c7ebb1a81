"""Penalties count exactly the sequence: prompt and generated tokens, in whatever pieces the device computed them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from modelfleet_engine.penalties import PenaltyTables
from modelfleet_engine.sampler import Sampler
from modelfleet_engine.step_plan import SamplingParameters, ScheduledSequence, StepPlan
from torch import Tensor

from tests_engine.test_sampler import normal, sample

VOCAB = 12
PROMPT, GENERATED = (3, 5, 5, 0, 8, 3), (7, 7, 1, 5)


def naive_penalties(
    logits: Tensor, sampling: SamplingParameters, prompt: Sequence[int], generated: Sequence[int]
) -> Tensor:
    """vLLM's definition, token by token. [V]"""
    result = logits.clone()
    for token in {*prompt, *generated}:
        value = float(result[token])
        result[token] = value / sampling.repetition_penalty if value > 0 else value * sampling.repetition_penalty
    for token in set(generated):
        result[token] -= sampling.frequency_penalty * generated.count(token) + sampling.presence_penalty
    return result


PENALIZED = SamplingParameters(temperature=0.0, presence_penalty=0.9, frequency_penalty=0.6, repetition_penalty=1.2)


def test_penalties_count_prompt_and_generated_tokens_as_vllm_does() -> None:
    """Greedy decoding with placeholders over a small vocabulary, so that penalties decide almost every token."""
    sampler = Sampler()
    last_sampled = torch.zeros(4, dtype=torch.int64)
    prompt, generated = (3, 5, 5, 0), list[int]()
    row = ScheduledSequence(
        slot=2,
        token_ids=prompt,
        input_from_previous_step=False,
        start_position=0,
        block_table=(0,),
        sampling=PENALIZED,
        is_first_chunk=True,
        prompt_token_ids=prompt,
    )
    for step in range(20):
        logits = normal(1, 12, seed=step, scale=1.0) + normal(1, 12, seed=99, scale=2.0)
        sampler.observe(StepPlan(step_id=step, sequences=(row,)), last_sampled=last_sampled)
        token = sample(logits, [row], sampler=sampler)[0]
        assert token == int(naive_penalties(logits[0], PENALIZED, prompt, generated).argmax())
        generated.append(token)
        last_sampled[2] = token
        row = dataclasses.replace(
            row,
            token_ids=(),
            input_from_previous_step=True,
            start_position=len(prompt) + step,
            is_first_chunk=False,
            prompt_token_ids=(),
        )
    # Without penalties another sequence would have come out, and the slot's neighbours are untouched.
    assert len(set(generated)) > 6


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a sequence of PROMPT and GENERATED reaches the draw of the next token. Spans are (start, end) of each row."""

    name: str
    spans: tuple[tuple[int, int], ...]
    generated_before: int = 0  # known to the first row
    placeholders: bool = False  # decodes take what was sampled


WAYS = [
    Way(name="in one chunk, then decoded", spans=((0, 6), (6, 7), (7, 8), (8, 9), (9, 10))),
    Way(name="decoded from placeholders", spans=((0, 6), (6, 7), (7, 8), (8, 9), (9, 10)), placeholders=True),
    Way(name="in chunks", spans=((0, 2), (2, 3), (3, 6), (6, 7), (7, 8), (8, 9), (9, 10))),
    Way(name="a cached prefix", spans=((4, 6), (6, 7), (7, 8), (8, 9), (9, 10)), placeholders=True),
    Way(name="all but the last prompt token shared by a fork", spans=((5, 6), (6, 7), (7, 8), (8, 9), (9, 10))),
    Way(name="preempted, recomputed in one chunk", spans=((0, 10),), generated_before=4),
    Way(
        name="preempted, recomputed in chunks across the prompt's end",
        spans=((0, 3), (3, 8), (8, 10)),
        generated_before=4,
    ),
    Way(name="preempted, found in the cache but for one token", spans=((9, 10),), generated_before=4),
    Way(
        name="preempted early, then decoded",
        spans=((2, 6), (6, 8), (8, 9), (9, 10)),
        generated_before=2,
        placeholders=True,
    ),
]


def rows_of(way: Way) -> list[ScheduledSequence]:
    """The rows in order; those that reach the last known token sample."""
    whole = (*PROMPT, *GENERATED)
    known = len(PROMPT) + way.generated_before
    rows = []
    for index, (start, end) in enumerate(way.spans):
        is_first = index == 0
        is_placeholder = way.placeholders and start >= known
        rows.append(
            ScheduledSequence(
                slot=1,
                token_ids=() if is_placeholder else whole[start:end],
                input_from_previous_step=is_placeholder,
                start_position=start,
                block_table=(0,),
                sampling=PENALIZED if end >= known else None,
                is_first_chunk=is_first,
                prompt_token_ids=PROMPT if is_first else (),
                generated_token_ids=GENERATED[: way.generated_before] if is_first else (),
            )
        )
    return rows


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_every_token_counts_once_however_it_was_computed(way: Way) -> None:
    tables = PenaltyTables()
    # An earlier user of the slot leaves nothing behind.
    earlier = ScheduledSequence(
        slot=1,
        token_ids=(9, 10),
        input_from_previous_step=False,
        start_position=0,
        block_table=(0,),
        sampling=PENALIZED,
        is_first_chunk=True,
        prompt_token_ids=(9,),
    )
    other = dataclasses.replace(earlier, slot=0, token_ids=(2, 4), prompt_token_ids=(2,))
    for row in (earlier, other):
        tables.observe(StepPlan(step_id=0, sequences=(row,)), last_sampled=torch.zeros(2, dtype=torch.int64))
        tables.apply(torch.zeros((1, VOCAB)), [row])
    for row in rows_of(way):
        last_sampled = torch.tensor([11, (*PROMPT, *GENERATED)[row.start_position]])
        tables.observe(StepPlan(step_id=1, sequences=(row,)), last_sampled=last_sampled)
        logits = normal(2, VOCAB, seed=row.start_position, scale=0.5)
        if row.sampling is not None:
            generated = GENERATED[: row.start_position + row.computed_tokens - len(PROMPT)]
            expected = torch.stack(
                (
                    naive_penalties(logits[0], PENALIZED, (2,), (4,)),
                    naive_penalties(logits[1], PENALIZED, PROMPT, generated),
                )
            )
            tables.apply(logits, [other, row])
            assert torch.allclose(logits, expected, rtol=0, atol=1e-6)
    assert rows_of(way)[-1].sampling is not None


def test_sequences_without_penalties_keep_nothing() -> None:
    tables = PenaltyTables()
    plain = SamplingParameters(temperature=0.0)
    chunk = dataclasses.replace(rows_of(WAYS[0])[0], sampling=plain)
    tables.observe(StepPlan(step_id=0, sequences=(chunk,)), last_sampled=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(KeyError):
        tables.apply(torch.zeros((1, VOCAB)), [dataclasses.replace(chunk, sampling=PENALIZED)])
