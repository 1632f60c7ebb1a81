"""What a step's result means for its sequences. Pure."""

from __future__ import annotations

from collections.abc import Sequence as Rows

from modelfleet_engine.request import FinishReason, StepOutputs
from modelfleet_engine.sequence import Sequence
from modelfleet_engine.step_plan import ScheduledSequence, StepResult, TokenLogprobs


def collect_outputs(rows: Rows[ScheduledSequence], sequences: Rows[Sequence], result: StepResult) -> StepOutputs:
    """Turns placeholders into tokens. Raises RuntimeError where a row that samples brought none.

    A sequence that ended before, by a token of an earlier step or by an abort, gets nothing: its token was one too
    many. The caller forgets those that end here.
    """
    prompt_logprobs = _prompt_logprobs(rows, sequences, result)
    request_ids: list[str] = []
    token_ids: list[int] = []
    finish_reasons: dict[str, FinishReason] = {}
    logprobs: dict[str, TokenLogprobs] = {}
    for index, (row, sequence, token_id) in enumerate(zip(rows, sequences, result.sampled_token_ids, strict=True)):
        if row.sampling is None:
            continue
        if token_id is None:
            raise RuntimeError(f"step {result.step_id} returned no token for slot {row.slot}")
        sequence.placeholders -= 1
        if sequence.finish_reason is not None:
            continue
        request_ids.append(sequence.request.request_id)
        token_ids.append(token_id)
        if index in result.logprobs:
            logprobs[sequence.request.request_id] = result.logprobs[index]
        reason = sequence.append(token_id)
        if reason is not None:
            finish_reasons[sequence.request.request_id] = reason
    return StepOutputs(
        request_ids=tuple(request_ids),
        token_ids=tuple(token_ids),
        finish_reasons=finish_reasons,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def _prompt_logprobs(
    rows: Rows[ScheduledSequence], sequences: Rows[Sequence], result: StepResult
) -> dict[str, tuple[TokenLogprobs, ...]]:
    """What is new for each request: a chunk computed again after a preemption may begin with what was delivered."""
    news: dict[str, tuple[TokenLogprobs, ...]] = {}
    for index, values in result.prompt_logprobs.items():
        sequence, start = sequences[index], rows[index].start_position
        if sequence.finish_reason is None:
            news[sequence.request.request_id] = values[sequence.prompt_logprobs_delivered - start :]
            sequence.prompt_logprobs_delivered = start + len(values)
    return news
