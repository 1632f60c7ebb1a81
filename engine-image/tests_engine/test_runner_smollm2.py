"""The runner on the demo model: log probabilities against transformers in float32, and memory after loading."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from modelfleet_engine.model_loader import load_runner
from modelfleet_engine.step_plan import SamplingParameters, ScheduledSequence, StepPlan, TokenLogprobs
from tokenizers import Tokenizer

from tests_engine.model_fixtures import demo_model_dir
from tests_engine.test_model_smollm2 import TEXT, engine_config, load_transformers

__all__ = ["demo_model_dir"]

pytestmark = pytest.mark.model

ALTERNATIVES = 5
# Thirty layers of float32 in another order of summation; the largest difference measured is 3.4e-5.
TOLERANCE = 3e-4


def test_drawn_and_prompt_log_probabilities_are_transformers_in_float32(demo_model_dir: Path) -> None:
    prompt = tuple(Tokenizer.from_file(str(demo_model_dir / "tokenizer.json")).encode(TEXT).ids)
    runner = load_runner(engine_config(demo_model_dir, "float32")).runner
    sampling = SamplingParameters(temperature=0.0, logprobs=ALTERNATIVES)
    entries: list[TokenLogprobs] = []
    for start in range(0, len(prompt), 64):
        end = min(start + 64, len(prompt))
        row = ScheduledSequence(
            slot=0,
            token_ids=prompt[start:end],
            input_from_previous_step=False,
            start_position=start,
            block_table=tuple(range(-(-len(prompt) // 16))),
            sampling=sampling if end == len(prompt) else None,
            is_first_chunk=start == 0,
            prompt_token_ids=prompt if start == 0 else (),
            prompt_logprobs=ALTERNATIVES,
            target_token_ids=prompt[start + 1 : end + 1],
        )
        result = runner.run(StepPlan(step_id=0, sequences=(row,)))
        entries += result.prompt_logprobs[0]
    drawn = result.sampled_token_ids[0]
    assert drawn is not None
    entries.append(result.logprobs[0])
    with torch.inference_mode():
        logits = load_transformers(demo_model_dir, torch.float32)(torch.tensor([prompt])).logits[0]  # [T, V]
    expected = logits.double().log_softmax(dim=-1)
    assert len(entries) == len(prompt)
    for row_of, token, entry in zip(expected, (*prompt[1:], drawn), entries, strict=True):
        assert entry.logprob == pytest.approx(float(row_of[token]), abs=TOLERANCE)
        assert entry.top_logprobs == pytest.approx(row_of.topk(ALTERNATIVES).values.tolist(), abs=TOLERANCE)
        # Alternatives nearer to each other than the tolerance may change places.
        assert row_of[list(entry.top_token_ids)].tolist() == pytest.approx(entry.top_logprobs, abs=TOLERANCE)
        better = int((row_of > row_of[token] + TOLERANCE).sum())
        assert better < entry.rank <= int((row_of > row_of[token] - TOLERANCE).sum()) + 1


def test_loading_leaves_the_packed_weights_in_memory_and_no_file_mapped(demo_model_dir: Path) -> None:
    program = f"""
import json, torch
from pathlib import Path
from modelfleet_api.engine_config import EngineConfig
from modelfleet_engine.model_loader import load_runner
from modelfleet_engine.process_memory import resident_bytes
before = resident_bytes()
loaded = load_runner(EngineConfig(model_path={str(demo_model_dir)!r}, served_model_name="m", dtype="bfloat16"))
after = resident_bytes()
files = [line for line in Path("/proc/self/maps").read_text().splitlines() if ".safetensors" in line]
print(json.dumps({{"grown": after - before, "mapped_files": len(files)}}))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["mapped_files"] == 0
    checkpoint_bytes = sum(path.stat().st_size for path in demo_model_dir.glob("*.safetensors"))
    # The embedding is tied: once for looking up, once packed as the head. [49152, 576] bfloat16.
    head_bytes = 49_152 * 576 * 2
    # Measured 32 MiB above: libraries' code, oneDNN's primitives, and the threads' stacks.
    assert found["grown"] < checkpoint_bytes + head_bytes + (96 << 20)
