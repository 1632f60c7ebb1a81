"""Draws one token per row: bias, penalties, bans, then greedy or temperature, min-p, top-k and top-p by Gumbel-max.

A bias is added to the model's logits before the penalties, as vLLM does: it changes what the model says, and presence
and frequency then subtract the same from it in either order; only the repetition penalty, a factor, can tell the
difference. Bans come last, so that no bias lifts one.

Every restriction is a threshold on the row's own logits (ties at the threshold stay in), and the noise is keyed by
(seed, choice index, position, token id): a row draws the same token in any batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from modelfleet_engine.logprobs import token_logprobs
from modelfleet_engine.noise import DrawKey, exponential
from modelfleet_engine.penalties import PenaltyTables
from modelfleet_engine.step_plan import SamplingParameters, ScheduledSequence, StepPlan, TokenLogprobs

# Below this the division by the temperature only overflows: greedy.
GREEDY_BELOW_TEMPERATURE = 1e-5
# How many of a row's largest logits are sorted at first, and then, before the whole row is. Speed alone.
_CANDIDATES = (64, 1024)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """What was drawn; `logprobs` by row, of the rows that asked for them."""

    token_ids: Tensor  # [R] int64
    logprobs: Mapping[int, TokenLogprobs]


class Sampler:
    """Samples rows of logits; keeps what the penalties count per slot."""

    def __init__(self) -> None:
        self._penalties = PenaltyTables()

    def observe(self, plan: StepPlan, *, last_sampled: Tensor) -> None:
        """Notes the tokens a step computes; call it once per step, before `sample`."""
        self._penalties.observe(plan, last_sampled=last_sampled)

    def sample(self, logits: Tensor, rows: list[ScheduledSequence]) -> Samples:
        """logits [R, V] float32 (may be overwritten), one row of the plan each."""
        sampling = [row.sampling for row in rows if row.sampling is not None]
        if len(sampling) != len(rows):
            raise ValueError(f"{len(rows) - len(sampling)} of {len(rows)} rows have no sampling parameters")
        alternatives = {index: item.logprobs for index, item in enumerate(sampling) if item.logprobs is not None}
        asking = list(alternatives)
        # The model's own logits, before anything below overwrites them.
        own_logits = logits[asking] if asking else None  # [A, V]
        _add_bias(logits, sampling)
        self._penalties.apply(logits, rows)
        _ban(logits, sampling)
        token_ids = logits.argmax(dim=-1)  # [R]
        drawn = [index for index, item in enumerate(sampling) if item.temperature >= GREEDY_BELOW_TEMPERATURE]
        if drawn:
            chosen = [sampling[index] for index in drawn]
            keys = [_draw_key(rows[index], sampling[index]) for index in drawn]
            token_ids[drawn] = _draw(logits[drawn], chosen, keys)
        if own_logits is None:
            return Samples(token_ids=token_ids, logprobs={})
        logprobs = token_logprobs(own_logits, token_ids[asking], list(alternatives.values()))
        return Samples(token_ids=token_ids, logprobs=dict(zip(asking, logprobs, strict=True)))


def _draw_key(row: ScheduledSequence, sampling: SamplingParameters) -> DrawKey:
    position = row.start_position + row.computed_tokens
    return DrawKey(seed=sampling.seed, choice_index=sampling.choice_index, position=position)


def _add_bias(logits: Tensor, sampling: list[SamplingParameters]) -> None:
    biased = [(index, token, value) for index, item in enumerate(sampling) for token, value in item.logit_bias]
    if biased:
        rows, tokens, values = (torch.tensor(column) for column in zip(*biased, strict=True))
        logits.index_put_((rows, tokens), values.to(logits.dtype), accumulate=True)


def _ban(logits: Tensor, sampling: list[SamplingParameters]) -> None:
    banned = [(index, token) for index, item in enumerate(sampling) for token in item.banned_token_ids]
    if banned:
        rows, tokens = zip(*banned, strict=True)
        logits[list(rows), list(tokens)] = float("-inf")


def _draw(logits: Tensor, sampling: list[SamplingParameters], keys: list[DrawKey]) -> Tensor:
    """logits [R, V] -> token ids [R]; every row has a temperature."""
    vocab_size = logits.shape[1]
    scaled = logits / _column([item.temperature for item in sampling])  # [R, V]
    token_ids = torch.empty(len(sampling), dtype=torch.int64)  # [R]
    free = [index for index, item in enumerate(sampling) if not _is_restricted(item, vocab_size)]
    restricted = [index for index, item in enumerate(sampling) if _is_restricted(item, vocab_size)]
    if free:
        every_token = torch.arange(vocab_size)[None]  # [1, V]
        token_ids[free] = _gumbel_max(scaled[free], every_token, [keys[index] for index in free])
    if restricted:
        token_ids[restricted] = _draw_restricted(
            scaled[restricted],
            [sampling[index] for index in restricted],
            [keys[index] for index in restricted],
        )
    return token_ids


def _is_restricted(item: SamplingParameters, vocab_size: int) -> bool:
    return 0 < item.top_k < vocab_size or item.top_p < 1.0 or item.min_p > 0.0


def _draw_restricted(scaled: Tensor, sampling: list[SamplingParameters], keys: list[DrawKey]) -> Tensor:
    """scaled [R, V] -> token ids [R]. Sorts few logits where they suffice, else more, else all."""
    vocab_size = scaled.shape[1]
    token_ids = torch.empty(len(sampling), dtype=torch.int64)  # [R]
    open_rows = list(range(len(sampling)))
    for limit in (*_CANDIDATES, vocab_size):
        size = min(limit, vocab_size)
        values, candidates = scaled[open_rows].topk(size)  # [R', K] each, sorted down
        floor = _floor(scaled[open_rows], values, [sampling[row] for row in open_rows])  # [R', 1]
        # A row is settled when the tokens it keeps end within the candidates.
        is_settled = (values[:, -1:] < floor).view(-1).tolist() if size < vocab_size else [True] * len(open_rows)
        done = [index for index, settled in enumerate(is_settled) if settled]
        rows = [open_rows[index] for index in done]
        if done:
            kept = values[done].masked_fill(values[done] < floor[done], float("-inf"))  # [R'', K]
            token_ids[rows] = _gumbel_max(kept, candidates[done], [keys[row] for row in rows])
        open_rows = [row for row in open_rows if row not in rows]
        if not open_rows:
            break
    return token_ids


def _floor(scaled: Tensor, values: Tensor, sampling: list[SamplingParameters]) -> Tensor:
    """The smallest logit each row keeps, [R, 1]; -inf where the sorted `values` [R, K] do not reach down to it.

    min-p and top-k first, then top-p over what they left, renormalized.
    """
    size, vocab_size = values.shape[1], scaled.shape[1]
    ranks = [item.top_k if 0 < item.top_k < vocab_size else 0 for item in sampling]
    floor = values[:, :1] + _column([item.min_p for item in sampling]).log()  # [R, 1]; log 0 = -inf: off
    for row, rank in enumerate(ranks):
        if 0 < rank <= size:
            floor[row] = torch.maximum(floor[row], values[row, rank - 1])
    top_p = _column([item.top_p for item in sampling])  # [R, 1]
    if bool((top_p < 1.0).any()):
        total = scaled.masked_fill(scaled < floor, float("-inf")).logsumexp(dim=-1, keepdim=True)  # [R, 1]
        probabilities = (values - total).exp().masked_fill_(values < floor, 0.0)  # [R, K]
        mass_before = probabilities.cumsum(dim=-1) - probabilities  # [R, K]
        kept = (mass_before < top_p).sum(dim=-1, keepdim=True).clamp_(min=1)  # [R, 1]
        nucleus = torch.maximum(floor, values.gather(1, kept - 1))  # [R, 1]
        is_reached = (top_p < 1.0) & ((kept < size) | (size == vocab_size))  # [R, 1]
        floor = torch.where(is_reached, nucleus, floor)
    is_beyond = torch.tensor([rank > size for rank in ranks])[:, None]  # [R, 1]
    return floor.masked_fill(is_beyond, float("-inf"))


def _gumbel_max(logits: Tensor, token_ids: Tensor, keys: list[DrawKey]) -> Tensor:
    """logits [R, K] of token_ids [R or 1, K] -> one token id per row [R], drawn from their softmax.

    argmax(logit + Gumbel noise) = argmax(exp(logit) / exponential noise).
    """
    weights = (logits - logits.amax(dim=-1, keepdim=True)).exp_()  # [R, K]
    best = (weights / exponential(keys, token_ids)).argmax(dim=-1, keepdim=True)  # [R, 1]
    return token_ids.expand(len(keys), -1).gather(1, best).view(-1)


def _column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None]
