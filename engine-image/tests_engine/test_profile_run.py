"""The profile run: its plans are ones a scheduler could make, its memory is what a step really takes."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from modelfleet_api.engine_config import EngineConfig
from modelfleet_engine import process_memory
from modelfleet_engine.errors import ModelError
from modelfleet_engine.model_loader import LoadedRunner, load_runner
from modelfleet_engine.process_memory import MemoryGrowth, PeakMemory
from modelfleet_engine.profile_run import Profile
from modelfleet_engine.profile_steps import ProfileSizes, decode_step, prefill_step, worst_step
from modelfleet_engine.step_plan import ProfiledStep, StepPlan

from tests_engine.model_fixtures import write_random_model
from tests_engine.test_runner_batch import write_files

BLOCK_TOKENS = 8
SIZES = ProfileSizes(tokens=100, sequences=16, longest=64, vocab_size=50, blocks=9)


def assert_possible(plan: StepPlan, sizes: ProfileSizes) -> None:
    """Every row fits its blocks, slots are apart, and the budgets hold."""
    slots = [row.slot for row in plan.sequences]
    assert len(set(slots)) == len(slots) <= sizes.sequences
    assert max(slots) < sizes.sequences
    assert sum(row.computed_tokens for row in plan.sequences) <= sizes.tokens
    for row in plan.sequences:
        end = row.start_position + row.computed_tokens
        assert 1 <= row.computed_tokens <= end <= max(sizes.longest, 1)
        assert end <= sizes.blocks * BLOCK_TOKENS
        assert max(row.token_ids) < sizes.vocab_size


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 64, 65, 100])
@pytest.mark.parametrize("sequences", [1, 16])
@pytest.mark.parametrize("longest", [1, 64])
def test_profiled_steps_are_ones_the_scheduler_could_plan(tokens: int, sequences: int, longest: int) -> None:
    sizes = dataclasses.replace(SIZES, tokens=tokens, sequences=sequences, longest=longest)
    for plan in (prefill_step(sizes), decode_step(sizes, sequences=sequences), worst_step(sizes)):
        assert_possible(plan, sizes)


def test_the_worst_step_fills_the_budget_with_every_sequence_drawing_and_scores_the_rest() -> None:
    plan = worst_step(SIZES)
    assert sum(row.computed_tokens for row in plan.sequences) == SIZES.tokens
    assert len(plan.sequences) == SIZES.sequences
    sampling = [row.sampling for row in plan.sequences]
    assert all(item is not None and item.logprobs == 20 and item.presence_penalty for item in sampling)
    assert {item.top_p for item in sampling if item is not None} == {1.0, 0.9}
    scored = [row for row in plan.sequences if row.prompt_logprobs is not None]
    # 86 tokens in two prompts of at most 64; the last token of each has no successor.
    assert [len(row.target_token_ids) for row in scored] == [63, 21]


def load(directory: Path, **settings: object) -> LoadedRunner:
    """A tiny model's runner."""
    config = EngineConfig.model_validate(
        {"modelPath": str(directory), "servedModelName": "tiny", "blockTokens": BLOCK_TOKENS, **settings}
    )
    return load_runner(config)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a vocabulary large enough to be seen: 32 rows of logits are 6 MiB."""
    directory = tmp_path_factory.mktemp("profiled")
    write_random_model(directory, family="Llama", vocab_size=50_000)
    return directory


def test_a_start_measures_its_steps_and_sizes_the_cache_by_them(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelfleet_engine.profile_run.STEP_SECONDS", 1e6)
    loaded = load(model_dir, maxNumSeqs=32, maxNumBatchedTokens=256)
    steps = loaded.profile.steps
    terms = [(step.sequences, step.prefill_tokens, step.kv_tokens) for step in steps]
    assert terms == [(1, 64, 64), (1, 0, 65), (32, 0, 32 * 65), (1, 256, 256)]
    assert all(step.seconds > 0 for step in steps)
    assert loaded.profile.profiled_tokens == 256
    # Logits of 32 rows and a copy of them for log probabilities are there at the same time, and nothing near the
    # bound of nine pieces of 16 MiB with activations of a few MiB.
    assert loaded.profile.source == "VmHWM"
    assert loaded.profile.step_bytes is not None
    assert 2 * 32 * 50_000 * 4 < loaded.profile.step_bytes < 200 << 20


def test_a_slow_model_is_profiled_with_fewer_tokens_and_the_rest_is_extrapolated(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelfleet_engine.profile_run.STEP_SECONDS", 1e-9)
    profile = load(model_dir, maxNumBatchedTokens=256).profile
    assert profile.profiled_tokens == 1
    # Per token: 4 bytes of 4 * 48 hidden, twice 6 + 2 * 2 heads of 8, and 3 * 88 inner numbers; and nine pieces of
    # logits with 83 rows each.
    assert profile.step_bytes is not None
    assert profile.step_bytes >= 256 * 4 * (4 * 48 + 2 * 10 * 8 + 3 * 88) + 9 * 4 * 83 * 50_000


def test_a_full_step_s_time_is_extrapolated_from_the_largest_profiled_prompt() -> None:
    def step(tokens: int, seconds: float) -> ProfiledStep:
        return ProfiledStep(sequences=1, prefill_tokens=tokens, kv_tokens=tokens, seconds=seconds)

    profile = Profile(steps=(step(64, 0.5), step(128, 0.75)), profiled_tokens=128, step_bytes=None, source="estimate")
    assert profile.full_step_seconds(512) == 3.0
    assert profile.full_step_seconds(128) == 0.75
    assert profile.full_step_seconds(16) == 0.75


def test_a_limit_too_small_for_a_step_is_said_before_one_is_run(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def must_not_run(*_: object) -> Profile:
        raise AssertionError("profiled")

    monkeypatch.setattr("modelfleet_engine.model_loader.profile_run", must_not_run)
    monkeypatch.setattr("modelfleet_engine.machine.memory_limit_bytes", lambda *_: 600 << 20)
    monkeypatch.setattr("modelfleet_engine.machine.memory_used_bytes", lambda *_: 590 << 20)
    with pytest.raises(ModelError, match=r"no KV cache fits: one block .*; memory limit 629145600, used 618659840"):
        load(model_dir)


def test_the_cache_under_a_limit_leaves_what_the_profile_measured(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelfleet_engine.machine.memory_limit_bytes", lambda *_: 1 << 30)
    monkeypatch.setattr("modelfleet_engine.machine.memory_used_bytes", lambda *_: 500 << 20)
    loaded = load(model_dir, maxNumSeqs=4096, maxNumBatchedTokens=64)
    assert loaded.profile.step_bytes is not None
    # The host's 128 MiB, attention's 128 MiB, and a mask of 6 bytes and two scores a head for each of 64 tokens by 256.
    pair_bytes = 6 + 2 * 4 * loaded.model.query_heads
    left = (524 << 20) - loaded.profile.step_bytes - (256 << 20) - pair_bytes * 64 * 256
    assert loaded.cache.blocks == left // loaded.cache.block_bytes


def test_memory_growth_is_the_peak_above_what_was_resident() -> None:
    memory = PeakMemory()
    block = torch.ones(64 << 20, dtype=torch.uint8)
    del block
    growth = memory.growth()
    assert growth is not None
    assert growth.source == "VmHWM"
    # The kernel counts pages in batches, one per CPU.
    assert 63 << 20 <= growth.growth_bytes < 80 << 20


STATUS = "Name:\tpython\nVmHWM:\t{peak} kB\nVmRSS:\t{resident} kB\n"


def test_a_peak_that_cannot_be_set_back_counts_only_where_it_rose_and_then_the_cgroup_is_asked(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "proc/self/status": STATUS.format(peak=900, resident=400),
        "sys/fs/cgroup/memory.peak": "5000000\n",
        "sys/fs/cgroup/memory.current": "3000000\n",
        "sys/fs/cgroup/memory.stat": "inactive_file 1000000\n",
    }
    root = write_files(tmp_path, files)
    (root / "proc/self/clear_refs").mkdir()  # cannot be written, whoever runs this
    memory = PeakMemory(root)
    assert memory.growth() is None
    write_files(root, {"sys/fs/cgroup/memory.peak": "5500000\n"})
    assert memory.growth() == MemoryGrowth(growth_bytes=3_500_000, source="cgroup peak")
    write_files(root, {"proc/self/status": STATUS.format(peak=1000, resident=400)})
    assert memory.growth() == MemoryGrowth(growth_bytes=600 * 1024, source="VmHWM")


def test_without_any_counter_growth_is_unknown(tmp_path: Path) -> None:
    assert PeakMemory(write_files(tmp_path, {"proc/self/statm": "1 1 0 0 0 0 0\n"})).growth() is None


def test_freed_memory_goes_back_to_the_kernel() -> None:
    """Small pieces below one that stays: what an allocator keeps by itself."""
    pieces = [torch.ones(16 << 10, dtype=torch.uint8) for _ in range(4096)]
    kept = torch.ones(16 << 10, dtype=torch.uint8)
    before = process_memory.resident_bytes()
    pieces.clear()
    assert process_memory.give_back_free_memory()
    assert before - process_memory.resident_bytes() > 48 << 20
    assert bool(kept.all())


def test_library_pages_that_are_not_used_are_let_go_and_libraries_work_on() -> None:
    program = """
import torch
from modelfleet_engine.process_memory import resident_bytes, unmap_unused_library_pages
before = resident_bytes()
unmap_unused_library_pages()
freed = before - resident_bytes()
product = torch.ones(64, 64) @ torch.ones(64, 64)
print(freed >> 20, float(product.sum()), torch.linalg.solve(torch.eye(3), torch.ones(3)).tolist())
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    freed_mebibytes, result = ran.stdout.split(maxsplit=1)
    # libtorch_cpu alone has 50 MiB that its relocation touches.
    assert int(freed_mebibytes) > 20
    assert result.split(maxsplit=1) == ["262144.0", "[1.0, 1.0, 1.0]\n"]
