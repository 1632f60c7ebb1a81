"""The runner's log probabilities, block copies and state on a real (tiny) model against transformers in float32."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from modelfleet_api.engine_config import EngineConfig
from modelfleet_engine import vocabulary
from modelfleet_engine.model_loader import load_runner
from modelfleet_engine.model_runner import ModelRunner
from modelfleet_engine.step_plan import (
    BlockCopy,
    SamplingParameters,
    ScheduledSequence,
    StepPlan,
    StepResult,
    TokenLogprobs,
)
from torch import Tensor

from tests_engine.model_fixtures import GREEDY, write_random_model

PROMPT = tuple(range(3, 120, 4))  # 30 tokens, in blocks of 8
# The largest difference measured is 2.8e-6: float32 rounding of three layers.
TOLERANCE = 3e-5


@dataclasses.dataclass(frozen=True)
class Reference:
    """The same weights in transformers, and where they lie."""

    directory: Path
    model: Any

    def logprobs(self, tokens: tuple[int, ...]) -> Tensor:
        """[T, V] float64: row i is about the token after the first i + 1."""
        with torch.inference_mode():
            logits: Tensor = self.model(torch.tensor([tokens])).logits[0]
        return logits.double().log_softmax(dim=-1)

    def runner(self) -> ModelRunner:
        """An engine's runner on the same weights."""
        config = EngineConfig(
            model_path=str(self.directory), served_model_name="tiny", block_tokens=8, kv_cache_bytes=1 << 20
        )
        return load_runner(config).runner


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """A tiny Llama in float32."""
    directory = tmp_path_factory.mktemp("logprobs")
    return Reference(directory, write_random_model(directory, family="Llama"))


def row(start: int, end: int, *, tokens: tuple[int, ...] = PROMPT, **settings: Any) -> ScheduledSequence:
    """The tokens from `start` to `end`, in blocks 4, 2, 7, 5, 1."""
    defaults: dict[str, Any] = {"slot": 0, "input_from_previous_step": False, "block_table": (4, 2, 7, 5, 1)}
    known = {"sampling": None, "is_first_chunk": start == 0, "prompt_token_ids": tokens if start == 0 else ()}
    return ScheduledSequence(token_ids=tokens[start:end], start_position=start, **defaults | known | settings)


def run(runner: ModelRunner, *rows: ScheduledSequence, copies: tuple[BlockCopy, ...] = ()) -> StepResult:
    """One step."""
    return runner.run(StepPlan(step_id=0, sequences=rows, block_copies=copies))


def assert_entry(entry: TokenLogprobs, expected: Tensor, token: int, *, alternatives: int) -> None:
    """expected [V] float64."""
    order = expected.argsort(descending=True).tolist()
    assert entry.rank == order.index(token) + 1
    assert entry.logprob == pytest.approx(float(expected[token]), abs=TOLERANCE)
    assert entry.top_token_ids == tuple(order[:alternatives])
    assert entry.top_logprobs == pytest.approx(expected[order[:alternatives]].tolist(), abs=TOLERANCE)


@pytest.mark.parametrize("slice_elements", [1 << 22, 500], ids=["in one piece", "three tokens at a time"])
def test_a_prompt_scored_in_chunks_has_transformers_log_probabilities(
    reference: Reference, slice_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "SLICE_ELEMENTS", slice_elements)
    runner, expected = reference.runner(), reference.logprobs(PROMPT)
    entries: list[TokenLogprobs] = []
    sampling = dataclasses.replace(GREEDY, logprobs=2)
    for start, end in ((0, 1), (1, 12), (12, 30)):
        is_last = end == len(PROMPT)
        scored = row(
            start,
            end,
            sampling=sampling if is_last else None,
            prompt_logprobs=4,
            target_token_ids=PROMPT[start + 1 : end + 1],
        )
        # A neighbour that asks for nothing gets nothing, and moves the scored tokens to other places of the batch.
        other = row(0, 5, slot=1, block_table=(9,), sampling=GREEDY)
        result = run(runner, other, scored)
        assert list(result.prompt_logprobs) == [1]
        entries += result.prompt_logprobs[1]
    assert len(entries) == len(PROMPT) - 1
    for position, entry in enumerate(entries):
        assert_entry(entry, expected[position], PROMPT[position + 1], alternatives=4)
    token = result.sampled_token_ids[1]
    assert token == int(expected[-1].argmax())
    assert list(result.logprobs) == [1]
    assert_entry(result.logprobs[1], expected[-1], token, alternatives=2)


@pytest.mark.parametrize("slice_elements", [1 << 22, 300], ids=["in one piece", "two rows at a time"])
def test_drawn_tokens_are_scored_by_the_model_s_own_distribution(
    reference: Reference, slice_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "SLICE_ELEMENTS", slice_elements)
    runner, expected = reference.runner(), reference.logprobs(PROMPT)[-1]
    asked = [
        SamplingParameters(temperature=0.0, logprobs=3),
        SamplingParameters(temperature=2.0, top_k=50, seed=4, logprobs=0),
        SamplingParameters(temperature=0.0),
        SamplingParameters(temperature=0.0, repetition_penalty=3.0, logit_bias=((77, 50.0),), logprobs=1),
    ]
    rows = [
        row(0, len(PROMPT), slot=slot, block_table=tuple(range(4 * slot, 4 * slot + 4)), sampling=sampling)
        for slot, sampling in enumerate(asked)
    ]
    result = run(runner, *rows)
    assert list(result.logprobs) == [0, 1, 3]
    tokens = result.sampled_token_ids
    assert tokens[0] == tokens[2] == int(expected.argmax())
    assert tokens[3] == 77
    for index in (0, 1, 3):
        token = tokens[index]
        assert token is not None
        assert_entry(result.logprobs[index], expected, token, alternatives=asked[index].logprobs or 0)


def test_forks_of_a_copied_block_continue_as_if_each_had_computed_the_prompt(reference: Reference) -> None:
    """Full blocks shared, the partial one copied; both then write into their own."""
    runner, prompt = reference.runner(), PROMPT[:20]
    run(runner, row(0, 20, tokens=prompt, block_table=(4, 2, 7), sampling=GREEDY))
    forks = [
        row(
            19,
            20,
            tokens=prompt,
            slot=slot,
            block_table=blocks,
            sampling=SamplingParameters(temperature=2.0, seed=slot),
            is_first_chunk=True,
            prompt_token_ids=prompt,
        )
        for slot, blocks in ((0, (4, 2, 7)), (1, (4, 2, 9)))
    ]
    drawn = run(runner, *forks, copies=(BlockCopy(source=7, destination=9),)).sampled_token_ids
    assert drawn[0] != drawn[1]
    decodes = [
        dataclasses.replace(
            fork,
            token_ids=(),
            input_from_previous_step=True,
            start_position=20,
            is_first_chunk=False,
            sampling=dataclasses.replace(GREEDY, logprobs=1),
        )
        for fork in forks
    ]
    result = run(runner, *decodes)
    for index, token in enumerate(drawn):
        assert token is not None
        expected = reference.logprobs((*prompt, token))[-1]
        following = result.sampled_token_ids[index]
        assert following is not None
        assert_entry(result.logprobs[index], expected, following, alternatives=1)


def test_a_sequence_resumed_from_cached_blocks_in_another_slot_goes_on_as_if_it_had_never_left(
    reference: Reference,
) -> None:
    penalized = SamplingParameters(temperature=0.8, seed=9, presence_penalty=0.7, repetition_penalty=1.4)
    outputs: list[list[int]] = []
    for is_preempted in (False, True):
        runner = reference.runner()
        tokens, slot = list(PROMPT), 0
        for step in range(10):
            start = 0 if step == 0 else len(tokens) - 1
            planned = row(
                start, len(tokens), tokens=tuple(tokens), slot=slot, sampling=penalized, is_first_chunk=not step
            )
            if is_preempted and step == 6:
                # Four blocks of 8 are found again: four tokens are computed once more.
                slot, start = 3, 32
                planned = row(
                    start,
                    len(tokens),
                    tokens=tuple(tokens),
                    slot=slot,
                    sampling=penalized,
                    is_first_chunk=True,
                    prompt_token_ids=PROMPT,
                    generated_token_ids=tuple(tokens[len(PROMPT) :]),
                )
            token = run(runner, planned).sampled_token_ids[0]
            assert token is not None
            tokens.append(token)
        outputs.append(tokens[len(PROMPT) :])
    assert outputs[0] == outputs[1]
    assert len(set(outputs[0])) > 5
