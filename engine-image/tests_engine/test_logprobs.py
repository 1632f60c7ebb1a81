"""Log probabilities against a naive log-softmax in float64: values, ranks, and a fixed order where logits tie."""

from __future__ import annotations

import pytest
import torch
from modelfleet_engine import vocabulary
from modelfleet_engine.logprobs import most_likely, token_logprobs
from modelfleet_engine.vocabulary import row_slices
from torch import Tensor


def naive_order(row: Tensor) -> list[int]:
    """Token ids by falling logit, then by rising id."""
    values = row.tolist()
    return sorted(range(len(values)), key=lambda token: (-values[token], token))


def random_logits(*shape: int, step: float = 0.0) -> Tensor:
    """Random rows; with a `step` rounded to its multiples, so that many tie."""
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(7)) * 4
    return (logits / step).round() * step if step else logits


@pytest.mark.parametrize("step", [0.0, 0.25, 4.0], ids=["no ties", "some ties", "ties beyond every candidate"])
@pytest.mark.parametrize("vocab_size", [7, 40, 3000])
def test_values_ranks_and_alternatives_are_those_of_the_sorted_log_softmax(step: float, vocab_size: int) -> None:
    logits = random_logits(6, vocab_size, step=step)
    token_ids = torch.tensor([0, vocab_size - 1, 3, 5, int(logits[4].argmax()), int(logits[5].argmin())])
    alternatives = [0, 1, 5, 20, 20, vocab_size]
    entries = token_logprobs(logits, token_ids, alternatives)
    for row, (entry, count) in enumerate(zip(entries, alternatives, strict=True)):
        order, expected = naive_order(logits[row]), logits[row].double().log_softmax(dim=-1)
        assert entry.rank == order.index(int(token_ids[row])) + 1
        assert entry.logprob == pytest.approx(float(expected[token_ids[row]]), abs=2e-6)
        assert entry.top_token_ids == tuple(order[:count])
        assert entry.top_logprobs == pytest.approx(expected[order[:count]].tolist(), abs=2e-6)


def test_a_token_of_rank_r_is_entry_r_of_the_most_likely_even_where_it_ties() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0, 2.0]])
    for token, rank in ((1, 1), (2, 2), (4, 3), (0, 4), (3, 5)):
        entry = token_logprobs(logits, torch.tensor([token]), [5])[0]
        assert (entry.rank, entry.top_token_ids[rank - 1]) == (rank, token)
    values, token_ids = most_likely(logits, count=2)
    assert (values.tolist(), token_ids.tolist()) == ([[2.0, 2.0]], [[1, 2]])


def test_logits_are_left_as_they_were() -> None:
    logits = random_logits(2, 50)
    before = logits.clone()
    token_logprobs(logits, torch.tensor([1, 2]), [3, 0])
    assert torch.equal(logits, before)


def test_no_rows_are_no_entries() -> None:
    assert token_logprobs(torch.empty(0, 9), torch.empty(0, dtype=torch.int64), []) == []


def test_pieces_cover_every_row_once_and_hold_at_most_so_many_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "SLICE_ELEMENTS", 1000)
    assert list(row_slices(0, vocab_size=300)) == []
    assert list(row_slices(7, vocab_size=300)) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert list(row_slices(2, vocab_size=1001)) == [slice(0, 1), slice(1, 2)]
    assert vocabulary.workspace_bytes(7, vocab_size=300) == 9 * 4 * 3 * 300
