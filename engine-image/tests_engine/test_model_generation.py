"""Greedy output of tiny random models of every family equals transformers', however the scheduler runs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from modelfleet_api.engine_config import EngineConfig
from modelfleet_engine.model_loader import load_runner
from modelfleet_engine.model_runner import ModelRunner
from modelfleet_engine.scheduler import SchedulerLimits

from tests_engine.generation import Generation
from tests_engine.model_fixtures import write_random_model
from tests_engine.tiny_families import FAMILIES, REFERENCE_TOKENS, prompt_of, transformers_logits

# Every family, with what depends on positions: scaled rotations and windows.
GENERATED = (
    "plain Llama",
    "llama3 rotary scaling",
    "yarn rotary scaling",
    "Mistral with a window",
    "Qwen2 with a window in its upper layers",
    "Qwen3",
    "Phi-3 with longrope, a window and partial rotation",
    "Gemma 2",
    "Gemma 3",
)
OUTPUT_TOKENS = 64
BLOCK_TOKENS = 8
KV_BLOCKS = 128
# Shorter than every window, and longer than every window and original context.
PROMPTS = [prompt_of(length) for length in (1, 5, 41, 90)]
# Two float32 computations of one logit differ by at most 4.4e-6 (test_model_families).
SMALLEST_GAP = 2e-5


@dataclass(frozen=True, kw_only=True)
class TinyModel:
    """A family's model in the engine and in transformers."""

    runner: ModelRunner
    reference: Any


@pytest.fixture(scope="module", params=GENERATED)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """One runner for all tests of a family: what an earlier one left in the cache must not matter."""
    directory = tmp_path_factory.mktemp("tiny")
    reference = write_random_model(directory, **FAMILIES[request.param])
    config = EngineConfig(
        model_path=str(directory),
        served_model_name="tiny",
        block_tokens=BLOCK_TOKENS,
        max_num_seqs=8,
        kv_cache_bytes=4 << 20,
    )
    return TinyModel(runner=load_runner(config).runner, reference=reference)


def limits(*, budget: int = 512, kv_blocks: int = KV_BLOCKS, prefix_caching: bool = False) -> SchedulerLimits:
    """Whole prompts in one step, blocks for all, nothing found again."""
    return SchedulerLimits(
        max_num_seqs=8,
        max_num_batched_tokens=budget,
        max_model_len=REFERENCE_TOKENS,
        kv_blocks=kv_blocks,
        block_tokens=BLOCK_TOKENS,
        prefix_caching=prefix_caching,
    )


def assert_greedy(model: TinyModel, prompts: list[tuple[int, ...]], outputs: list[list[int]]) -> None:
    """Each token is transformers' largest after the ones before it: by induction the whole is its greedy output."""
    assert [len(output) for output in outputs] == [OUTPUT_TOKENS] * len(prompts)
    sequences = [(*prompt, *output) for prompt, output in zip(prompts, outputs, strict=True)]
    logits = [rows[-OUTPUT_TOKENS - 1 : -1] for rows in transformers_logits(model.reference, sequences)]
    assert outputs == [rows.argmax(dim=-1).tolist() for rows in logits]
    for rows in logits:
        best, second = rows.topk(2, dim=-1).values.unbind(-1)  # [64] each
        # The tests ask for arithmetic, not for luck: nowhere do the best two tie within rounding.
        assert float((best - second).min()) > SMALLEST_GAP


def test_each_prompt_alone_in_one_piece(model: TinyModel) -> None:
    outputs = [Generation(model.runner, limits()).run([prompt], output_tokens=OUTPUT_TOKENS)[0] for prompt in PROMPTS]
    assert_greedy(model, PROMPTS, outputs)


def test_all_prompts_batched_and_in_chunks(model: TinyModel) -> None:
    generation = Generation(model.runner, limits(budget=24))
    outputs = generation.run(PROMPTS, output_tokens=OUTPUT_TOKENS)
    assert max(len(planned.plan.sequences) for planned in generation.plans) == len(PROMPTS)
    # Chunks of a prompt and single tokens went through the model together.
    lengths = [{row.computed_tokens for row in planned.plan.sequences} for planned in generation.plans]
    assert any(1 in mixed and max(mixed) > 8 for mixed in lengths)
    assert_greedy(model, PROMPTS, outputs)


@pytest.mark.parametrize("prefix_caching", [False, True])
def test_preempted_and_computed_again(model: TinyModel, prefix_caching: bool) -> None:
    # Room for the longest sequence and half of another.
    generation = Generation(model.runner, limits(budget=24, kv_blocks=30, prefix_caching=prefix_caching))
    outputs = generation.run(PROMPTS, output_tokens=OUTPUT_TOKENS)
    assert generation.scheduler.stats().preemptions > 0
    assert_greedy(model, PROMPTS, outputs)


def test_prefixes_found_in_the_cache(model: TinyModel) -> None:
    generation = Generation(model.runner, limits(budget=24, prefix_caching=True))
    outputs = generation.run(PROMPTS, output_tokens=OUTPUT_TOKENS)
    assert generation.scheduler.stats().prefix_hit_tokens == 0
    assert_greedy(model, PROMPTS, outputs)
    # The same prompt again, the next turn of a conversation, and a prompt that leaves a cached one inside a block.
    turns = [PROMPTS[3], (*PROMPTS[2], *outputs[2], 9, 8, 7), (*PROMPTS[3][:43], 1, 2, 3)]
    later = generation.run(turns, output_tokens=OUTPUT_TOKENS)
    cached = [admission.cached_tokens for planned in generation.plans for admission in planned.admitted]
    assert cached[len(PROMPTS) :] == [88, 104, 40]
    assert_greedy(model, turns, later)
