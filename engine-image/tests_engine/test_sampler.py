"""The sampler: exact restrictions, exact penalties, the right distribution, and the same draw in any batch."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from modelfleet_engine.noise import DrawKey, exponential
from modelfleet_engine.sampler import Sampler, Samples
from modelfleet_engine.step_plan import SamplingParameters, ScheduledSequence, StepPlan
from torch import Tensor

VOCAB = 3000


def row_of(sampling: SamplingParameters, *, slot: int = 0, position: int = 10) -> ScheduledSequence:
    """A decode row that draws the token of `position`."""
    return ScheduledSequence(
        slot=slot,
        token_ids=(1,),
        input_from_previous_step=False,
        start_position=position - 1,
        block_table=(0,),
        sampling=sampling,
    )


def parameters(**settings: Any) -> SamplingParameters:
    """Temperature 1 and what the test says."""
    return SamplingParameters(**settings)


def sample(logits: Tensor, rows: list[ScheduledSequence], *, sampler: Sampler | None = None) -> list[int]:
    """Draws without changing `logits`; without a `sampler` of its own every row is its slot's first."""
    return draw(logits, rows, sampler=sampler).token_ids.tolist()


def draw(logits: Tensor, rows: list[ScheduledSequence], *, sampler: Sampler | None = None) -> Samples:
    """`sample` with log probabilities."""
    if sampler is None:
        sampler = Sampler()
        first = tuple(dataclasses.replace(row, is_first_chunk=True, prompt_token_ids=(1,) * 10) for row in rows)
        sampler.observe(StepPlan(step_id=0, sequences=first), last_sampled=torch.zeros(8, dtype=torch.int64))
    return sampler.sample(logits.clone(), rows)


def normal(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    """Random logits."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def support(logits: Tensor, sampling: SamplingParameters, *, draws: int = 400) -> set[int]:
    """Which tokens come up over many positions."""
    rows = [row_of(sampling, position=position) for position in range(1, draws + 1)]
    return set(sample(logits.expand(draws, -1), rows))


def test_greedy_takes_the_largest_logit_and_so_does_a_temperature_too_small_to_divide_by() -> None:
    logits = normal(2, VOCAB)
    rows = [row_of(parameters(temperature=0.0)), row_of(parameters(temperature=1e-6))]
    assert sample(logits, rows) == logits.argmax(dim=-1).tolist()


def test_greedy_takes_the_largest_that_is_not_banned() -> None:
    logits = normal(1, VOCAB)
    order = logits[0].argsort(descending=True).tolist()
    banned = parameters(temperature=0.0, banned_token_ids=tuple(order[:3]))
    assert sample(logits, [row_of(banned)]) == [order[3]]


def test_banned_tokens_are_never_drawn_and_bind_their_own_row_alone() -> None:
    logits = torch.zeros((2, 4))
    banned = parameters(banned_token_ids=(0, 2))
    assert support(logits[:1], banned) == {1, 3}
    assert support(logits[:1], parameters()) == {0, 1, 2, 3}
    drawn = [sample(logits, [row_of(banned, position=at), row_of(parameters(), position=at)])[1] for at in range(1, 99)]
    assert set(drawn) == {0, 1, 2, 3}


def test_top_k_keeps_exactly_the_k_largest() -> None:
    logits = normal(1, VOCAB, scale=0.3)
    order = logits[0].argsort(descending=True).tolist()
    assert support(logits, parameters(top_k=1)) == {order[0]}
    assert support(logits, parameters(top_k=5)) == set(order[:5])
    assert support(torch.zeros((1, 3)), parameters(top_k=50)) == {0, 1, 2}


def test_tokens_tied_at_the_k_th_place_all_stay() -> None:
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    assert support(logits, parameters(top_k=2)) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.3, {0}), (0.5, {0}), (0.54, {0, 1}), (0.85, {0, 1, 2}), (1.0, {0, 1, 2, 3})]
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: set[int]) -> None:
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125 / 2]]).log()
    logits = torch.cat((logits, torch.full((1, 60), float("-inf"))), dim=-1)
    # The masses are 8/15, 4/15, 2/15 and 1/15.
    assert support(logits, parameters(top_p=top_p)) == kept


def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest() -> None:
    logits = torch.tensor([[0.5, 0.26, 0.24]]).log()
    assert support(logits, parameters(min_p=0.5)) == {0, 1}
    assert support(logits, parameters(min_p=1.0)) == {0}


def test_top_p_is_taken_over_what_top_k_left() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    # Of two tokens the first holds 4/7 = 0.57; of all four it holds 0.4.
    assert support(logits, parameters(top_k=2, top_p=0.5)) == {0}
    assert support(logits, parameters(top_p=0.5)) == {0, 1}


@pytest.mark.parametrize("top_p", [0.2, 0.7, 0.95, 0.999])
def test_a_flat_distribution_is_sorted_as_far_as_top_p_reaches(top_p: float) -> None:
    logits = normal(1, VOCAB, scale=0.01)
    probabilities = logits.softmax(dim=-1).double()
    descending = probabilities.sort(descending=True)
    kept = int((descending.values.cumsum(-1) - descending.values < top_p).sum())
    allowed = set(descending.indices[0, : kept + 1].tolist())
    drawn = support(logits, parameters(top_p=top_p), draws=600)
    assert drawn <= allowed
    assert len(drawn) > 0.85 * kept * (1 - math.exp(-600 / kept))


def test_draws_follow_the_softmax_at_the_temperature() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -2.0]])
    draws = 6_000
    for settings in ({"temperature": 0.7}, {"temperature": 1.5}, {"temperature": 0.7, "top_p": 0.9999}):
        rows = [row_of(parameters(seed=3, **settings), position=position) for position in range(1, draws + 1)]
        drawn = torch.tensor(sample(logits.expand(draws, -1), rows))
        expected = (logits[0] / settings["temperature"]).softmax(dim=-1) * draws  # [6]
        statistic = float(((drawn.bincount(minlength=6) - expected).square() / expected).sum())
        # 5 degrees of freedom: 1 in 100,000 lies above 30.9; the keys are fixed, so this never flickers.
        assert statistic < 30.9


def test_noise_is_exponential_and_independent_of_its_neighbours() -> None:
    token_ids = torch.arange(50_000)[None]
    noise = exponential([DrawKey(seed=1, choice_index=0, position=at) for at in range(8)], token_ids)  # [8, 50000]
    assert bool((noise > 0).all())
    assert bool(noise.isfinite().all())
    assert abs(float(noise.mean()) - 1) < 0.01
    assert abs(float(noise.var()) - 1) < 0.03
    correlations = torch.corrcoef(noise).fill_diagonal_(0)
    assert float(correlations.abs().max()) < 0.02
    assert abs(float(torch.corrcoef(torch.stack((noise[0, 1:], noise[0, :-1])))[0, 1])) < 0.02


def test_the_draw_depends_on_seed_choice_and_position_and_on_nothing_else() -> None:
    logits = torch.zeros((1, VOCAB))
    base = sample(logits, [row_of(parameters(seed=1), position=5)])
    assert sample(logits, [row_of(parameters(seed=1), position=5, slot=7)]) == base
    others = [
        sample(logits, [row_of(parameters(seed=2), position=5)]),
        sample(logits, [row_of(parameters(seed=1, choice_index=1), position=5)]),
        sample(logits, [row_of(parameters(seed=1), position=6)]),
        sample(logits, [row_of(parameters(seed=1 << 63), position=5)]),
    ]
    assert len({tuple(drawn) for drawn in [base, *others]}) == 5


def test_the_stream_of_random_numbers_never_changes_between_releases() -> None:
    """A seed is a promise to users: a change of these numbers is a change of the interface."""
    noise = exponential([DrawKey(seed=42, choice_index=1, position=7)], torch.tensor([[0, 1, 49151]]))
    assert noise[0].tolist() == pytest.approx([0.709891, 0.355212, 1.976375], abs=1e-6)


MIXED = [
    parameters(temperature=0.0),
    parameters(temperature=0.8, seed=1),
    parameters(temperature=0.8, top_k=40, seed=2),
    parameters(temperature=1.2, top_p=0.9, seed=3),
    parameters(temperature=1.0, top_k=2000, top_p=0.95, seed=4),
    parameters(temperature=0.3, min_p=0.1, seed=5),
    parameters(temperature=1.0, top_p=0.8, repetition_penalty=1.3, presence_penalty=0.5, seed=6),
    parameters(temperature=1.0, frequency_penalty=0.7, banned_token_ids=(3, 4, 5), seed=7),
]


def test_a_row_draws_the_same_token_alone_and_in_any_batch() -> None:
    logits = normal(len(MIXED), VOCAB)
    for position in range(1, 8):
        rows = [row_of(item, slot=index, position=position) for index, item in enumerate(MIXED)]
        alone = [sample(logits[index : index + 1], [row])[0] for index, row in enumerate(rows)]
        assert sample(logits, rows) == alone
        backwards = sample(logits.flip(0), rows[::-1])
        assert backwards[::-1] == alone


def test_a_bias_is_added_before_the_penalties_and_lifts_no_ban() -> None:
    logits = torch.tensor([[3.0, 2.0, -1.0, 0.0]])
    assert sample(logits, [row_of(parameters(temperature=0.0, logit_bias=((2, 4.5), (0, -0.1))))]) == [2]
    assert sample(logits, [row_of(parameters(temperature=0.0, logit_bias=((2, 100.0),), banned_token_ids=(2,)))]) == [0]
    # Token 1 is in the prompt: (2 + 4) / 1.9 = 3.16 beats 3; biased after the penalty it would be 2 / 1.9 + 4 = 5.05.
    repeated = parameters(temperature=0.0, repetition_penalty=1.9, logit_bias=((1, 4.0),))
    assert sample(logits, [row_of(repeated)]) == [1]
    assert sample(logits + torch.tensor([[0.5, 0, 0, 0]]), [row_of(repeated)]) == [0]


def test_a_bias_binds_its_own_row_alone_and_shifts_the_odds_by_its_exponential() -> None:
    logits = torch.zeros((2, 2))
    biased = parameters(seed=5, logit_bias=((1, math.log(3.0)),))
    rows = [row_of(biased, position=at) for at in range(1, 4001)]
    share = sum(sample(logits[:1].expand(4000, -1), rows)) / 4000
    # 3 to 1; one standard deviation is 0.0068.
    assert share == pytest.approx(0.75, abs=0.02)
    plain = [row_of(parameters(seed=5), position=7), row_of(biased, position=7)]
    assert sample(logits, plain)[0] == sample(logits[:1], plain[:1])[0]


def test_log_probabilities_are_those_of_the_model_whatever_changes_the_draw() -> None:
    logits = normal(3, VOCAB)
    changed = parameters(
        temperature=0.6, top_k=5, presence_penalty=0.5, repetition_penalty=1.3, logit_bias=((7, 9.0),), logprobs=3
    )
    rows = [row_of(changed), row_of(parameters(temperature=0.0), slot=1), row_of(parameters(logprobs=0), slot=2)]
    drawn = draw(logits, rows)
    assert list(drawn.logprobs) == [0, 2]
    for index, count in ((0, 3), (2, 0)):
        entry, token = drawn.logprobs[index], int(drawn.token_ids[index])
        expected = logits[index].double().log_softmax(dim=-1)
        order = expected.argsort(descending=True).tolist()
        assert entry.rank == order.index(token) + 1
        assert entry.top_token_ids == tuple(order[:count])
        assert entry.logprob == pytest.approx(float(expected[token]), abs=1e-5)
        assert entry.top_logprobs == pytest.approx(expected[order[:count]].tolist(), abs=1e-5)
    assert draw(logits, [row_of(dataclasses.replace(changed, logprobs=None))]).token_ids[0] == drawn.token_ids[0]


def test_a_row_without_sampling_parameters_is_a_bug() -> None:
    row = dataclasses.replace(row_of(parameters()), sampling=None)
    with pytest.raises(ValueError, match="1 of 1 rows have no sampling parameters"):
        sample(torch.zeros((1, 4)), [row])
