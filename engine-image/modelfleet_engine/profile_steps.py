"""Plans as the scheduler would make them, for the profile run: prompts, decodes, and the step that needs most memory.

All rows share one set of blocks: what they write there does not matter. No torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from modelfleet_engine.step_plan import SamplingParameters, ScheduledSequence, StepPlan
from modelfleet_engine.vocabulary import rows_per_slice

# As many alternatives as the API allows.
ALTERNATIVES = 20
_GREEDY = SamplingParameters(temperature=0.0)
# Everything that holds a tensor of its own while it samples; without and with a restriction of the tokens drawn from.
_FREE = SamplingParameters(
    temperature=1.0, presence_penalty=0.1, repetition_penalty=1.1, logit_bias=((0, 1.0),), logprobs=ALTERNATIVES
)
_RESTRICTED = dataclasses.replace(_FREE, top_p=0.9, top_k=1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSizes:
    """Tokens of a step, sequences there may be, tokens a sequence may have, and the blocks there are."""

    tokens: int
    sequences: int
    longest: int
    vocab_size: int
    blocks: int

    def with_tokens(self, tokens: int) -> ProfileSizes:
        """The same with another number of tokens a step."""
        return dataclasses.replace(self, tokens=tokens)


def prefill_step(sizes: ProfileSizes) -> StepPlan:
    """`tokens` prompt tokens of as few sequences as hold them, from their beginning."""
    return StepPlan(step_id=0, sequences=_prompts(sizes, tokens=sizes.tokens))


def decode_step(sizes: ProfileSizes, *, sequences: int) -> StepPlan:
    """One token of each sequence, at the end of a context of `tokens` tokens; at most `tokens` sequences."""
    count = max(1, min(sequences, sizes.tokens))
    return StepPlan(step_id=0, sequences=tuple(_decode(sizes, slot=slot, sampling=_GREEDY) for slot in range(count)))


def worst_step(sizes: ProfileSizes) -> StepPlan:
    """As many sequences as there may be, all drawing with everything on, and scored prompts in the rest of the step."""
    # The fewest prompts that hold what is left when every other sequence decodes one token.
    fewest = max(1, -(-(sizes.tokens - sizes.sequences) // max(1, sizes.longest - 1)))
    prompts = _prompts(sizes, tokens=max(1, sizes.tokens - sizes.sequences + fewest))
    used = sum(row.computed_tokens for row in prompts)
    count = max(0, min(sizes.sequences - len(prompts), sizes.tokens - used))
    decodes = [_decode(sizes, slot=len(prompts) + index, sampling=_sampling(index)) for index in range(count)]
    scored = [
        dataclasses.replace(
            row,
            sampling=_sampling(index),
            prompt_token_ids=row.token_ids,
            prompt_logprobs=ALTERNATIVES,
            # One piece of logits is all that scoring holds at once: more would only take longer.
            target_token_ids=row.token_ids[1:][: rows_per_slice(sizes.vocab_size)],
        )
        for index, row in enumerate(prompts)
    ]
    return StepPlan(step_id=0, sequences=(*decodes, *scored))


def _sampling(index: int) -> SamplingParameters:
    return _RESTRICTED if index % 2 else _FREE


def _prompts(sizes: ProfileSizes, *, tokens: int) -> tuple[ScheduledSequence, ...]:
    rows: list[ScheduledSequence] = []
    while tokens > 0 and len(rows) < sizes.sequences:
        count = min(tokens, sizes.longest)
        tokens -= count
        rows.append(
            ScheduledSequence(
                slot=len(rows),
                # Different tokens: as many as a penalty can count.
                token_ids=tuple(token % sizes.vocab_size for token in range(count)),
                input_from_previous_step=False,
                start_position=0,
                block_table=tuple(range(sizes.blocks)),
                sampling=_GREEDY,
                is_first_chunk=True,
            )
        )
    return tuple(rows)


def _decode(sizes: ProfileSizes, *, slot: int, sampling: SamplingParameters) -> ScheduledSequence:
    """The token after a context of `tokens` tokens. As if after a preemption: its slot is new to the device."""
    return ScheduledSequence(
        slot=slot,
        token_ids=(slot % sizes.vocab_size,),
        input_from_previous_step=False,
        start_position=min(sizes.tokens, sizes.longest - 1),
        block_table=tuple(range(sizes.blocks)),
        sampling=sampling,
        is_first_chunk=True,
    )
