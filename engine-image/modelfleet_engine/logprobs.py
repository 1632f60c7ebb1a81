"""Log probabilities of tokens under the model's own distribution: of its raw logits, before bias, penalties, bans and
temperature, as vLLM reports them by default (`logprobs_mode=raw_logprobs`).

Tokens of one row are ordered by falling logit and, where logits are equal, by rising token id. A token's rank is its
place in that order, so rank r is entry r - 1 of the most likely ones. bfloat16 logits tie often: without the second
key two equal requests could be answered differently.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modelfleet_engine.step_plan import TokenLogprobs

# Candidates looked at beyond those wanted, so that a tie at the last place rarely needs a sort of the whole row.
_TIE_CANDIDATES = 32


def token_logprobs(logits: Tensor, token_ids: Tensor, alternatives: list[int]) -> list[TokenLogprobs]:
    """One entry per row: of `token_ids` [R] int64 under logits [R, V] float32, which stay as they are.

    `alternatives` says how many of the most likely tokens each row reports besides (bounded by the vocabulary).
    """
    if not alternatives:
        return []
    own = token_ids[:, None]  # [R, 1]
    values = logits.gather(1, own)  # [R, 1]
    total = logits.logsumexp(dim=-1, keepdim=True)  # [R, 1]
    ranks = (_count_before(logits, values, own) + 1).tolist()
    logprobs = (values - total).view(-1).tolist()
    wanted = min(max(alternatives), logits.shape[1])
    if wanted == 0:
        return [TokenLogprobs(logprob=value, rank=rank) for value, rank in zip(logprobs, ranks, strict=True)]
    top_values, top_ids = most_likely(logits, count=wanted)  # [R, wanted] each
    top_logprobs = (top_values - total).tolist()
    return [
        TokenLogprobs(
            logprob=logprob, rank=rank, top_token_ids=tuple(ids[:count]), top_logprobs=tuple(probabilities[:count])
        )
        for logprob, rank, ids, probabilities, count in zip(
            logprobs, ranks, top_ids.tolist(), top_logprobs, alternatives, strict=True
        )
    ]


def most_likely(logits: Tensor, *, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` values and token ids [R, count] of each row of logits [R, V], in the order above."""
    vocab_size = logits.shape[1]
    size = min(vocab_size, count + _TIE_CANDIDATES)
    values, token_ids = logits.topk(size)  # [R, size] each; equal values in any order
    token_ids, by_id = token_ids.sort(dim=-1)
    values, by_value = values.gather(1, by_id).sort(dim=-1, descending=True, stable=True)
    token_ids = token_ids.gather(1, by_value)
    if size < vocab_size:
        # A tie that reaches the last candidate may go on beyond it.
        is_open = values[:, count - 1] == values[:, -1]  # [R]
        for row in is_open.nonzero().view(-1).tolist():
            every_value, every_id = logits[row].sort(descending=True, stable=True)  # [V] each
            values[row], token_ids[row] = every_value[:size], every_id[:size]
    return values[:, :count], token_ids[:, :count]


def _count_before(logits: Tensor, values: Tensor, token_ids: Tensor) -> Tensor:
    """How many tokens of logits [R, V] come before the one of `values` and `token_ids` [R, 1]: [R]."""
    greater = (logits > values).sum(dim=-1)  # [R]
    tied = (logits == values).logical_and_(torch.arange(logits.shape[1]) < token_ids).sum(dim=-1)  # [R]
    return greater + tied
