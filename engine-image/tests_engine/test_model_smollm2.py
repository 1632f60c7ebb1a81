"""The demo model against transformers: 20 prompts in one mixed batch, in float32 and in bfloat16."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from modelfleet_api.engine_config import Dtype, EngineConfig
from modelfleet_engine.device import LoadedModel, load_model
from modelfleet_engine.engine import Close, Engine, Failed, Submit, Update
from modelfleet_engine.model_loader import load_runner
from modelfleet_engine.request import GenerationRequest
from modelfleet_engine.scheduler import Scheduler, SchedulerLimits
from modelfleet_engine.step_plan import ScheduledSequence, StepPlan
from tokenizers import Tokenizer
from torch import Tensor

from tests_engine.model_fixtures import GREEDY, DrivenSequence, demo_model_dir, drive

__all__ = ["demo_model_dir"]

pytestmark = pytest.mark.model

TEXT = """The capital of France is Paris, a city on the river Seine. Its best known buildings are the Louvre, once a
palace and now a museum, the cathedral of Notre-Dame and the Eiffel tower, built in 1889 for a world's fair. When the
tower opened, most writers of the city hated it; one is said to have eaten lunch there every day, because it was the
only place in Paris from which he did not have to see it. Water boils at 100 degrees Celsius at sea level and at about
90 degrees on a mountain of three thousand metres, which is why beans take so long to cook there. To add two fractions,
first bring them to the same denominator, then add the numerators: one half plus one third is five sixths."""
# (first token, tokens): one token, around the block size of 32 and the chunk of 64, and longer than any chunk.
SPANS = [
    (0, 1), (7, 2), (3, 3), (20, 5), (11, 8), (40, 13), (2, 17), (60, 21), (5, 26), (9, 31),
    (0, 32), (31, 33), (15, 47), (22, 63), (1, 64), (13, 65), (8, 80), (0, 97), (4, 120), (0, 140),
]  # fmt: skip
OUTPUT_TOKENS = 16


@pytest.fixture(scope="module")
def prompts(demo_model_dir: Path) -> list[tuple[int, ...]]:
    """20 prompts of different lengths."""
    ids = Tokenizer.from_file(str(demo_model_dir / "tokenizer.json")).encode(TEXT).ids
    return [tuple(ids[first : first + length]) for first, length in SPANS]


@pytest.fixture(scope="module")
def float32_reference(demo_model_dir: Path) -> Any:
    """transformers in float32."""
    return load_transformers(demo_model_dir, torch.float32)


def load_transformers(model_dir: Path, dtype: torch.dtype) -> Any:
    """The same checkpoint in transformers."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype, local_files_only=True).eval()


def engine_config(model_dir: Path, dtype: Dtype) -> EngineConfig:
    """A small cache, and a step too small for most prompts."""
    return EngineConfig(
        model_path=str(model_dir),
        served_model_name="demo",
        dtype=dtype,
        max_num_batched_tokens=64,
        kv_cache_bytes=128 << 20,
    )


def load_engine(model_dir: Path, dtype: Dtype) -> LoadedModel:
    """The engine's device."""
    return load_model(engine_config(model_dir, dtype))


def generate(model: LoadedModel, prompts: list[tuple[int, ...]]) -> list[list[int]]:
    """Greedy outputs of all prompts, batched, chunked and one step ahead."""
    sequences = [DrivenSequence(prompt=prompt, output_tokens=OUTPUT_TOKENS) for prompt in prompts]
    try:
        plans = drive(model.device, sequences, block_tokens=model.block_tokens, kv_blocks=model.kv_blocks)
    finally:
        model.device.close()
    kinds = {(row.input_from_previous_step, row.sampling is None) for plan in plans for row in plan.sequences}
    # The run did contain placeholders, chunks that do not sample, and rows that do.
    assert kinds == {(True, False), (False, True), (False, False)}
    assert any(len({row.input_from_previous_step for row in plan.sequences}) == 2 for plan in plans)
    return [sequence.outputs for sequence in sequences]


def generate_with_engine(model: LoadedModel, prompts: list[tuple[int, ...]]) -> list[list[int]]:
    """Greedy outputs of all prompts by the product's own engine loop and scheduler, all submitted at once."""
    outputs: dict[str, list[int]] = {str(index): [] for index in range(len(prompts))}
    failures: list[Failed] = []
    is_done = threading.Event()

    def publish(update: Update | Failed) -> None:
        if isinstance(update, Failed):
            failures.append(update)
        else:
            for request_id, token_id in zip(update.outputs.request_ids, update.outputs.token_ids, strict=True):
                outputs[request_id].append(token_id)
        if failures or all(len(tokens) == OUTPUT_TOKENS for tokens in outputs.values()):
            is_done.set()

    limits = SchedulerLimits(
        max_num_seqs=32,
        max_num_batched_tokens=64,
        max_model_len=model.max_model_len,
        kv_blocks=model.kv_blocks,
        block_tokens=model.block_tokens,
    )
    engine = Engine(device=model.device, scheduler=Scheduler(limits), publish=publish)
    requests = [
        GenerationRequest(request_id=str(index), prompt_token_ids=prompt, sampling=GREEDY, max_tokens=OUTPUT_TOKENS)
        for index, prompt in enumerate(prompts)
    ]
    engine.send(Submit(requests=tuple(requests)))
    thread = threading.Thread(target=engine.run)
    thread.start()
    assert is_done.wait(timeout=120)
    engine.send(Close())
    thread.join()
    assert failures == []
    return list(outputs.values())


def test_greedy_float32_output_equals_transformers_on_20_prompts(
    demo_model_dir: Path, prompts: list[tuple[int, ...]], float32_reference: Any
) -> None:
    outputs = generate_with_engine(load_engine(demo_model_dir, "float32"), prompts)
    sequences = [(*prompt, *output) for prompt, output in zip(prompts, outputs, strict=True)]
    logits = transformers_logits(float32_reference, sequences)
    # Each token is transformers' largest after the ones before it: by induction the whole is its greedy output.
    assert outputs == [rows.argmax(dim=-1).tolist() for rows in logits]


def test_bfloat16_leaves_transformers_only_where_logits_tie_within_rounding(
    demo_model_dir: Path, prompts: list[tuple[int, ...]], float32_reference: Any, record_property: Any
) -> None:
    """Rounding is what transformers itself loses from float32 to bfloat16; our logits lose no more than that."""
    model = load_engine(demo_model_dir, "bfloat16")
    outputs = generate(model, prompts)
    sequences = [(*prompt, *output) for prompt, output in zip(prompts, outputs, strict=True)]
    theirs = transformers_logits(load_transformers(demo_model_dir, torch.bfloat16), sequences)
    exact = transformers_logits(float32_reference, sequences)
    rounding = rms(torch.stack([low - high for low, high in zip(theirs, exact, strict=True)]))
    ties = []  # prompt, position, how much better transformers finds another token
    for index, (output, logits) in enumerate(zip(outputs, theirs, strict=True)):
        # Given the same prefix, at every position and not only the first: our token is theirs, or ties with it.
        gaps = logits.amax(dim=-1) - logits[torch.arange(OUTPUT_TOKENS), torch.tensor(output)]  # [16]
        ties += [(index, position, float(gaps[position])) for position in gaps.nonzero().view(-1).tolist()]
    record_property("rounding", rounding)
    record_property("ties", ties)
    # Two logits of two models, each off by `rounding`: their difference is off by twice that, here two sigma.
    assert [tie for tie in ties if tie[2] > 4 * rounding] == []
    # 320 tokens were compared.
    assert len(ties) <= 16
    ours = last_logits(demo_model_dir, sequences)
    error = rms(torch.stack([mine - high[-1] for mine, high in zip(ours, exact, strict=True)]))
    record_property("our_rounding", error)
    assert error <= 1.25 * rounding


def transformers_logits(model: Any, sequences: list[tuple[int, ...]]) -> list[Tensor]:
    """What transformers says where the last 16 tokens of each sequence were drawn: [16, V] float32 each."""
    with torch.inference_mode():
        every = [model(torch.tensor([sequence])).logits[0].float() for sequence in sequences]
    return [logits[-OUTPUT_TOKENS - 1 : -1] for logits in every]


def last_logits(model_dir: Path, sequences: list[tuple[int, ...]]) -> list[Tensor]:
    """The engine's bfloat16 logits [V] where the last token of each sequence was drawn, one prefill each."""
    config = engine_config(model_dir, "bfloat16")
    runner = load_runner(config).runner
    logits = []
    for sequence in sequences:
        row = ScheduledSequence(
            slot=0,
            token_ids=sequence[:-1],
            input_from_previous_step=False,
            start_position=0,
            block_table=tuple(range(-(-len(sequence) // config.block_tokens))),
            sampling=GREEDY,
        )
        logits.append(runner.logits(StepPlan(step_id=0, sequences=(row,)))[0])
    return logits


def rms(values: Tensor) -> float:
    """Root of the mean square."""
    return float(values.square().mean().sqrt())


def test_the_model_answers_paris_through_its_chat_template(demo_model_dir: Path) -> None:
    template = (demo_model_dir / "chat_template.jinja").read_text()
    text = jinja2.Template(template).render(
        messages=[{"role": "user", "content": "Please tell me the capital of France in one sentence."}],
        add_generation_prompt=True,
    )
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nPlease tell me the capital of France in one sentence.<|im_end|>\n<|im_start|>assistant\n"
    )
    tokenizer = Tokenizer.from_file(str(demo_model_dir / "tokenizer.json"))
    model = load_engine(demo_model_dir, "auto")
    assert model.dtype == "bfloat16"
    asked = DrivenSequence(prompt=tuple(tokenizer.encode(text).ids), output_tokens=8)
    drive(model.device, [asked], block_tokens=model.block_tokens, kv_blocks=model.kv_blocks)
    model.device.close()
    generation = json.loads((demo_model_dir / "generation_config.json").read_text())
    end = asked.outputs.index(generation["eos_token_id"])
    assert tokenizer.decode(asked.outputs[:end]) == "The capital of France is Paris."
