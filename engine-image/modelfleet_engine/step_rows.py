"""The rows of a plan: what the device must know of one sequence in one step. Pure."""

from __future__ import annotations

from modelfleet_engine.sequence import Sequence
from modelfleet_engine.step_plan import ScheduledSequence


def plan_row(sequence: Sequence, *, count: int, blocks: int) -> ScheduledSequence:
    """The row for `count` tokens of a sequence in its first `blocks` blocks. The sequence advances by them.

    Raises RuntimeError for a sequence without a slot.
    """
    if sequence.slot is None:
        raise RuntimeError(f"request {sequence.request.request_id} is planned without a slot")
    start = sequence.computed_tokens
    from_previous_step = start >= sequence.known_tokens
    is_sampled = start + count == sequence.total_tokens
    targets = () if sequence.request.prompt_logprobs is None else _take_targets(sequence, start=start, count=count)
    row = ScheduledSequence(
        slot=sequence.slot,
        token_ids=() if from_previous_step else sequence.token_ids(start=start, count=count),
        input_from_previous_step=from_previous_step,
        start_position=start,
        block_table=sequence.block_table_for(blocks),
        sampling=sequence.sampling_for_next() if is_sampled else None,
        is_first_chunk=sequence.is_new_in_slot,
        prompt_token_ids=sequence.request.prompt_token_ids if sequence.is_new_in_slot else (),
        generated_token_ids=tuple(sequence.output_token_ids) if sequence.is_new_in_slot else (),
        prompt_logprobs=sequence.request.prompt_logprobs if targets else None,
        target_token_ids=targets,
    )
    sequence.computed_tokens += count
    sequence.placeholders += 1 if is_sampled else 0
    sequence.is_new_in_slot = False
    sequence.was_planned = True
    return row


def _take_targets(sequence: Sequence, *, start: int, count: int) -> tuple[int, ...]:
    """The prompt's tokens whose log probabilities this row's hidden states give, unless all were asked for before.

    If only some were, before a preemption, they are asked again: the row's first target belongs to its first token.
    """
    end = min(start + count, sequence.prompt_tokens - 1)
    if end <= sequence.prompt_logprobs_planned:
        return ()
    sequence.prompt_logprobs_planned = end
    return sequence.request.prompt_token_ids[start + 1 : end + 1]
