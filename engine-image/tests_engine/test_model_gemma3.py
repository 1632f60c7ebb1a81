"""Real weights of a second family: Gemma 3 270M against transformers, beyond its window of 512 tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from modelfleet_api.engine_config import EngineConfig
from modelfleet_engine.model_loader import load_runner
from modelfleet_engine.scheduler import SchedulerLimits
from modelfleet_engine.step_plan import ScheduledSequence, StepPlan
from tokenizers import Tokenizer

from tests_engine.gemma3_checkpoint import gemma3_checkpoint_path
from tests_engine.generation import Generation
from tests_engine.model_fixtures import GREEDY

pytestmark = pytest.mark.model

LICENSE = Path(__file__).resolve().parents[2] / "LICENSE"
PROMPT_TOKENS, OUTPUT_TOKENS, BLOCK_TOKENS = 600, 32, 16
# Logits of up to 37; measured: 2.9e-5.
MAX_LOGIT_ERROR = 2e-4


def test_greedy_float32_output_and_logits_equal_transformers_on_a_long_text() -> None:
    directory = gemma3_checkpoint_path()
    prompt = tuple(Tokenizer.from_file(str(directory / "tokenizer.json")).encode(LICENSE.read_text()).ids)
    prompt = prompt[:PROMPT_TOKENS]
    config = EngineConfig(
        model_path=str(directory),
        served_model_name="gemma",
        dtype="float32",
        block_tokens=BLOCK_TOKENS,
        max_num_batched_tokens=256,
        max_num_seqs=2,
        kv_cache_bytes=64 << 20,
    )
    loaded = load_runner(config)
    limits = SchedulerLimits(
        max_num_seqs=2,
        max_num_batched_tokens=256,
        max_model_len=loaded.cache.max_model_len,
        kv_blocks=loaded.cache.blocks,
        block_tokens=BLOCK_TOKENS,
    )
    (output,) = Generation(loaded.runner, limits).run([prompt], output_tokens=OUTPUT_TOKENS)
    expected = transformers_logits(directory, (*prompt, *output))
    # Each token is transformers' largest after the ones before it: by induction the whole is its greedy output.
    assert output == expected[:-1].argmax(dim=-1).tolist()
    whole = (*prompt, *output)
    row = ScheduledSequence(
        slot=0,
        token_ids=whole,
        input_from_previous_step=False,
        start_position=0,
        block_table=tuple(range(-(-len(whole) // BLOCK_TOKENS))),
        sampling=GREEDY,
    )
    logits = loaded.runner.logits(StepPlan(step_id=0, sequences=(row,)))[0]
    assert float((logits - expected[-1]).abs().max()) < MAX_LOGIT_ERROR


def transformers_logits(directory: Path, sequence: tuple[int, ...]) -> torch.Tensor:
    """After the prompt and after each output token, [outputs + 1, V] float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([sequence]), logits_to_keep=OUTPUT_TOKENS + 1).logits[0]
    return logits
