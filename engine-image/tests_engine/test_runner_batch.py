"""From plan to tensors, KV cache sizes, and this machine's limits: exact values."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from modelfleet_engine import machine
from modelfleet_engine.batch import build_batch
from modelfleet_engine.errors import ModelError
from modelfleet_engine.kv_cache import (
    DEFAULT_KV_CACHE_BYTES,
    CachePlan,
    CacheRequest,
    allocate_cache,
    can_hold_a_step,
    copy_blocks,
    kept_bytes,
    plan_cache,
)
from modelfleet_engine.model_config import parse_model_config
from modelfleet_engine.step_plan import BlockCopy, ScheduledSequence, StepPlan

from tests_engine.model_fixtures import GREEDY
from tests_engine.test_model_config import LLAMA


def row(start: int, tokens: tuple[int, ...], **settings: Any) -> ScheduledSequence:
    """A row with the block table (4, 2, 7)."""
    defaults: dict[str, Any] = {"slot": 0, "input_from_previous_step": False, "sampling": None}
    return ScheduledSequence(token_ids=tokens, start_position=start, block_table=(4, 2, 7), **defaults | settings)


def test_a_mixed_plan_is_laid_out_row_after_row() -> None:
    plan = StepPlan(
        step_id=0,
        sequences=(
            row(9, (), slot=3, input_from_previous_step=True, sampling=GREEDY),
            row(3, (21,), slot=1, sampling=GREEDY),
            row(2, (31, 32, 33), slot=0),
            row(0, (41, 42), slot=2, sampling=GREEDY),
        ),
    )
    batch = build_batch(plan, block_tokens=4, last_sampled=torch.tensor([5, 6, 7, 8]))
    assert batch.token_ids.tolist() == [8, 21, 31, 32, 33, 41, 42]
    assert batch.paged.query_lengths == [1, 1, 3, 2]
    assert batch.paged.sequence_lengths == [10, 4, 5, 2]
    assert batch.positions.tolist() == [9, 3, 2, 3, 4, 0, 1]
    # In blocks (4, 2, 7) of 4 tokens.
    assert batch.paged.slot_mapping.tolist() == [29, 19, 18, 19, 8, 16, 17]
    assert batch.paged.block_tables.tolist() == [[4, 2, 7]] * 4
    assert batch.sampling_rows == [0, 1, 3]
    assert batch.output_tokens.tolist() == [0, 1, 6]
    assert batch.slots.tolist() == [3, 1, 2]


def test_scored_prompt_tokens_come_after_those_that_sample_and_know_what_followed() -> None:
    plan = StepPlan(
        step_id=0,
        sequences=(
            row(9, (11,), slot=3, sampling=GREEDY),
            row(2, (31, 32, 33), slot=0, prompt_logprobs=0, target_token_ids=(32, 33, 34)),
            row(0, (41, 42), slot=2, sampling=GREEDY, prompt_logprobs=2, target_token_ids=(42,)),
        ),
    )
    batch = build_batch(plan, block_tokens=4, last_sampled=torch.zeros(4, dtype=torch.int64))
    assert batch.sampling_rows == [0, 2]
    assert batch.scored_rows == [1, 2]
    assert batch.output_tokens.tolist() == [0, 5, 1, 2, 3, 4]
    assert batch.target_token_ids.tolist() == [32, 33, 34, 42]


def request(**settings: Any) -> CacheRequest:
    """One block is 2 layers * 2 * 16 tokens * 4 heads * 16 * 4 bytes = 16 KiB."""
    defaults: dict[str, Any] = {
        "model": parse_model_config(LLAMA),
        "dtype": torch.float32,
        "block_tokens": 16,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "max_model_len": None,
        "kv_cache_bytes": None,
        "memory_limit_bytes": None,
        "memory_used_bytes": 0,
    }
    return CacheRequest(**defaults | settings)


def test_the_cache_takes_the_bytes_it_is_given_and_bounds_the_longest_sequence() -> None:
    assert plan_cache(request(kv_cache_bytes=100_000)) == CachePlan(blocks=6, block_bytes=16_384, max_model_len=96)
    assert plan_cache(request(kv_cache_bytes=1 << 20)).max_model_len == 512
    assert plan_cache(request(kv_cache_bytes=1 << 20, max_model_len=100)).max_model_len == 100


def test_without_a_limit_the_cache_takes_two_gibibytes_or_what_all_sequences_can_fill() -> None:
    assert plan_cache(request()).blocks == 8 * 512 // 16
    many = plan_cache(request(max_num_seqs=4096))
    assert many.blocks == 4096 * 512 // 16
    assert plan_cache(request(max_num_seqs=4096, block_tokens=32)).blocks * 32_768 <= DEFAULT_KV_CACHE_BYTES
    model = dataclasses.replace(request().model, layers=64)
    assert plan_cache(request(max_num_seqs=4096, model=model)).blocks == DEFAULT_KV_CACHE_BYTES // (32 * 16_384)


def test_under_a_limit_the_cache_takes_what_is_left_after_weights_and_activations() -> None:
    limited = request(memory_used_bytes=100_000_000)
    limit = 100_000_000 + kept_bytes(limited, longest=160) + 10 * 16_384 + 5
    assert plan_cache(request(memory_used_bytes=100_000_000, memory_limit_bytes=limit)).blocks == 10


def test_what_is_kept_for_attention_is_for_the_longest_sequence_that_the_cache_can_hold() -> None:
    """A context of a million tokens, of which this limit can hold 40,000: keys and values of the million are 1 GiB."""
    long_context = dataclasses.replace(request().model, max_position_embeddings=1 << 20)
    cached = 2500 * 16_384
    for wanted in (None, 40_000):
        limited = request(model=long_context, max_model_len=wanted)
        limit = kept_bytes(limited, longest=40_000) + cached
        plan = plan_cache(dataclasses.replace(limited, memory_limit_bytes=limit))
        assert plan == CachePlan(blocks=2500, block_bytes=16_384, max_model_len=40_000)
        assert plan_cache(dataclasses.replace(limited, memory_limit_bytes=limit + cached)).blocks > 2500
    with pytest.raises(ModelError, match="maxModelLen 40000 is above the 39984 tokens the KV cache holds"):
        plan_cache(dataclasses.replace(limited, memory_limit_bytes=limit - 1))


def test_a_measured_step_takes_the_place_of_the_estimate_and_attention_over_long_contexts_stays_counted() -> None:
    estimated, measured = request(), request(measured_step_bytes=1_000_000)
    # 128 MiB for the host, 128 MiB for gathered keys and values, and for each of 64 * 512 pairs a mask of 6 bytes and
    # the scores of 4 heads twice.
    pairs = 64 * 512
    assert kept_bytes(measured, longest=512) == 1_000_000 + (128 << 20) + (128 << 20) + (6 + 2 * 4 * 4) * pairs
    # A backend that reads blocks where they lie takes none of that.
    in_place = request(measured_step_bytes=1_000_000, attention_copies_context=False)
    assert kept_bytes(in_place, longest=512) == kept_bytes(in_place, longest=400_000) == 1_000_000 + (128 << 20)
    per_token = 4 * (4 * 64 + 2 * (4 + 2 * 4) * 16 + 3 * 128)
    logits = 9 * 4 * 64 * 100
    assert kept_bytes(estimated, longest=512) - kept_bytes(measured, longest=512) == 64 * per_token + logits - 1_000_000


def test_a_step_fits_or_not_by_the_estimate_alone() -> None:
    step = kept_bytes(request(), longest=512) - kept_bytes(request(measured_step_bytes=0), longest=512)
    assert can_hold_a_step(request())
    assert can_hold_a_step(request(memory_used_bytes=7, memory_limit_bytes=step + 7))
    assert not can_hold_a_step(request(memory_used_bytes=8, memory_limit_bytes=step + 7))


def test_block_copies_reach_every_layer_as_if_done_one_after_the_other() -> None:
    chained = [(0, 1), (1, 2), (3, 4), (0, 3), (4, 5), (6, 5), (5, 0), (2, 2)]
    # More than are copied in one call, and none depends on another.
    many = [(index, index + 40) for index in range(40)]
    for pairs in (chained, many, []):
        cache = torch.arange(2 * 80 * 2 * 3 * 4 * 5, dtype=torch.float32).view(2, 80, 2, 3, 4, 5)
        expected = cache.clone()
        for source, destination in pairs:
            expected[:, destination] = expected[:, source].clone()
        copy_blocks(cache, [BlockCopy(source=source, destination=to) for source, to in pairs])
        assert torch.equal(cache, expected)


def test_a_cache_without_room_for_one_block_names_what_was_needed_and_the_limit() -> None:
    with pytest.raises(ModelError, match=r"one block of 16 tokens needs 16384 bytes; kvCacheBytes is 16383"):
        plan_cache(request(kv_cache_bytes=16_383))
    with pytest.raises(ModelError, match=r"one block .* needs 16384 bytes; memory limit 1000000, used 900000, kept"):
        plan_cache(request(memory_limit_bytes=1_000_000, memory_used_bytes=900_000))


def test_an_explicit_length_above_either_bound_names_both_numbers() -> None:
    with pytest.raises(ModelError, match="maxModelLen 513 is above the model's maximum of 512 tokens"):
        plan_cache(request(max_model_len=513))
    with pytest.raises(ModelError, match=r"maxModelLen 97 is above the 96 tokens the KV cache holds"):
        plan_cache(request(max_model_len=97, kv_cache_bytes=100_000))


def resident_bytes() -> int:
    """This process's resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_the_cache_is_zero_and_resident_only_where_it_was_written() -> None:
    plan = plan_cache(request(max_num_seqs=512))
    before = resident_bytes()
    layers = allocate_cache(request().model, blocks=plan.blocks, block_tokens=16, dtype=torch.float32)
    assert layers.shape == (2, plan.blocks, 2, 4, 16, 16)
    assert plan.blocks * plan.block_bytes == 256 << 20
    assert resident_bytes() - before < 8 << 20
    assert float(layers[1][plan.blocks // 2].abs().sum()) == 0.0
    layers[1][3] = 1.0
    assert float(layers[0].narrow(0, 3, 1).sum()) == 0.0


def write_files(root: Path, files: dict[str, str]) -> Path:
    """A piece of /sys and /proc."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


V2_POD = {
    "proc/self/cgroup": "0::/\n",
    "sys/fs/cgroup/memory.max": "2147483648\n",
    "sys/fs/cgroup/memory.current": "600000000\n",
    "sys/fs/cgroup/memory.stat": "anon 1\nactive_file 90000000\ninactive_file 10000000\n",
    "sys/fs/cgroup/cpu.max": "250000 100000\n",
}
# In a container the cgroup of /proc is not below the mount; v1 says "no limit" with a large number.
V1_POD = {
    "proc/self/cgroup": "4:memory:/kubepods/pod1/abc\n3:cpu,cpuacct:/kubepods/pod1/abc\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "1073741824\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "700000000\n",
    "sys/fs/cgroup/memory/memory.stat": "active_file 1\ntotal_inactive_file 150000000\ntotal_active_file 50000000\n",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
}
V2_HOST = {
    "proc/self/cgroup": "0::/a/b\n",
    "sys/fs/cgroup/a/b/memory.max": "max\n",
    "sys/fs/cgroup/a/b/memory.current": "300\n",
    "sys/fs/cgroup/a/b/memory.stat": "inactive_file 100\n",
    "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
    "sys/fs/cgroup/a/memory.max": "5000\n",
    "sys/fs/cgroup/a/cpu.max": "50000 100000\n",
}


@pytest.mark.parametrize(
    ("files", "limit", "used", "quota_cores"),
    [(V2_POD, 2147483648, 500_000_000, 2), (V1_POD, 1073741824, 500_000_000, 10**6), (V2_HOST, 5000, 200, 1)],
    ids=["v2 pod", "v1 pod", "v2 host, limited by its parent"],
)
def test_limits_are_read_from_both_cgroup_versions(
    tmp_path: Path, files: dict[str, str], limit: int, used: int, quota_cores: int
) -> None:
    root = write_files(tmp_path, files)
    assert machine.memory_limit_bytes(root) == limit
    assert machine.memory_used_bytes(root) == used
    assert machine.usable_cores(root) == min(quota_cores, len(os.sched_getaffinity(0)))


def test_without_cgroups_there_is_no_limit_and_use_is_what_is_resident(tmp_path: Path) -> None:
    root = write_files(tmp_path, {"proc/self/statm": "1000 250 0 0 0 0 0\n"})
    assert machine.memory_limit_bytes(root) is None
    assert machine.memory_used_bytes(root) == 250 * os.sysconf("SC_PAGE_SIZE")
    assert machine.usable_cores(root) == len(os.sched_getaffinity(0))


def test_a_limit_of_v1_s_largest_number_is_no_limit(tmp_path: Path) -> None:
    unlimited = V1_POD | {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}
    assert machine.memory_limit_bytes(write_files(tmp_path, unlimited)) is None
