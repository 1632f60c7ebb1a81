"""The device thread's order and failures, and `load_model` on a real (tiny) model."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from modelfleet_api.engine_config import EngineConfig
from modelfleet_engine import machine
from modelfleet_engine.device import DeviceClosedError, ThreadDevice, load_model
from modelfleet_engine.errors import ModelError
from modelfleet_engine.step_plan import SamplingParameters, ScheduledSequence, StepPlan, StepResult

from tests_engine.model_fixtures import DrivenSequence, drive, write_random_model


def plan(step_id: int) -> StepPlan:
    """Nothing but a number."""
    return StepPlan(step_id=step_id, sequences=())


def done(step: StepPlan) -> StepResult:
    """An empty result."""
    return StepResult(step_id=step.step_id, sampled_token_ids=(), busy_seconds=0.0)


def test_steps_run_one_at_a_time_in_order_and_submit_does_not_wait() -> None:
    gate, running, ran = threading.Event(), threading.Semaphore(1), list[int]()

    def step(submitted: StepPlan) -> StepResult:
        assert running.acquire(blocking=False)
        gate.wait(5)
        ran.append(submitted.step_id)
        running.release()
        return done(submitted)

    device = ThreadDevice(step)
    for step_id in range(5):
        device.submit(plan(step_id))
    assert ran == []
    gate.set()
    assert [device.wait().step_id for _ in range(5)] == ran == [0, 1, 2, 3, 4]
    device.close()


def test_a_step_s_exception_is_raised_by_its_wait_and_no_step_runs_after_it() -> None:
    ran: list[int] = []

    def step(submitted: StepPlan) -> StepResult:
        ran.append(submitted.step_id)
        if submitted.step_id == 1:
            raise ZeroDivisionError("step 1")
        return done(submitted)

    device = ThreadDevice(step)
    for step_id in range(3):
        device.submit(plan(step_id))
    assert device.wait().step_id == 0
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="step 1"):
            device.wait()
    assert ran == [0, 1]
    device.close()


def test_waiting_for_nothing_is_a_bug_and_not_a_hang() -> None:
    device = ThreadDevice(done)
    with pytest.raises(RuntimeError, match=r"wait\(\) without a submitted step"):
        device.wait()
    device.close()


def test_close_waits_for_the_running_step_drops_the_rest_and_ends_the_thread() -> None:
    started, ran = threading.Event(), list[int]()

    def step(submitted: StepPlan) -> StepResult:
        started.set()
        time.sleep(0.05)
        ran.append(submitted.step_id)
        return done(submitted)

    threads = threading.active_count()
    device = ThreadDevice(step)
    device.submit(plan(0))
    device.submit(plan(1))
    started.wait(5)
    device.close()
    device.close()
    assert ran == [0]
    assert threading.active_count() == threads
    assert device.wait().step_id == 0
    with pytest.raises(DeviceClosedError, match="step 1 was dropped"):
        device.wait()
    with pytest.raises(DeviceClosedError, match="step 2 submitted to a closed device"):
        device.submit(plan(2))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama."""
    directory = tmp_path_factory.mktemp("tiny")
    write_random_model(directory, family="Llama")
    return directory


def test_a_loaded_model_says_its_sizes_and_what_its_start_took(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    config = EngineConfig(
        model_path=str(model_dir), served_model_name="tiny", block_tokens=8, kv_cache_bytes=1 << 20, dtype="bfloat16"
    )
    model = load_model(config)
    model.device.close()
    # 3 layers * 2 * 8 tokens * 2 heads * 8 numbers of 2 bytes.
    assert (model.kv_block_bytes, model.kv_blocks) == (1536, 682)
    assert (model.max_model_len, model.vocab_size, model.block_tokens) == (256, 131, 8)
    assert (model.dtype, model.backend) == ("bfloat16", "torch_cpu")
    assert list(model.phases) == ["read_config", "map_weights", "pack_weights", "profile", "allocate_kv_cache"]
    assert all(seconds >= 0 for seconds in model.phases.values())
    assert torch.get_num_threads() == machine.usable_cores()


def test_a_kernel_backend_asked_for_by_name_is_used_or_refused(model_dir: Path) -> None:
    config = EngineConfig(
        model_path=str(model_dir), served_model_name="tiny", kv_cache_bytes=1 << 20, kernel_backend="reference"
    )
    model = load_model(config)
    model.device.close()
    assert model.backend == "reference"
    with pytest.raises(ModelError, match="kernel backend 'triton' is not available on 'cpu'; available: "):
        load_model(config.model_copy(update={"kernel_backend": "triton"}))
    with pytest.raises(ModelError, match="kernel backend 'cpu' cannot be used: "):
        load_model(config.model_copy(update={"kernel_backend": "cpu", "dtype": "float32"}))


def test_a_number_of_threads_the_user_has_set_stays(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = EngineConfig(model_path=str(model_dir), served_model_name="tiny", kv_cache_bytes=1 << 20)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        load_model(config).device.close()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_spinning_and_compiled_products_are_bounded_before_torch_is_loaded_unless_the_user_has_a_policy(
    model_dir: Path,
) -> None:
    program = f"""
import os, sys
from modelfleet_api.engine_config import EngineConfig
from modelfleet_engine.device import load_model
assert "torch" not in sys.modules
load_model(EngineConfig(model_path={str(model_dir)!r}, served_model_name="m", kv_cache_bytes=1 << 20)).device.close()
print(os.environ.get("GOMP_SPINCOUNT"), os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"])
"""
    for policy, expected in ((None, "10000"), ("PASSIVE", "None")):
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
        }
        if policy:
            environment["OMP_WAIT_POLICY"] = policy
        ran = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert ran.stdout.split() == [expected, "256"]


def test_sampled_sequences_are_the_same_alone_and_batched(model_dir: Path) -> None:
    """Float32: other rows of a batch change rounding by less than any two tokens' scores lie apart here."""
    config = EngineConfig(model_path=str(model_dir), served_model_name="tiny", block_tokens=8, kv_cache_bytes=1 << 20)
    prompts = [tuple(range(start, start + length)) for start, length in ((0, 3), (10, 33), (50, 17), (90, 1))]
    sampling = [
        SamplingParameters(temperature=0.9, seed=1),
        SamplingParameters(temperature=1.1, top_p=0.9, seed=2, presence_penalty=0.4),
        SamplingParameters(temperature=0.7, top_k=20, seed=3, repetition_penalty=1.2),
        SamplingParameters(temperature=0.0, frequency_penalty=0.5),
    ]

    def run(chosen: list[int], budget: int) -> list[list[int]]:
        model = load_model(config)
        sequences = [
            DrivenSequence(prompt=prompts[index], sampling=sampling[index], output_tokens=12) for index in chosen
        ]
        drive(model.device, sequences, block_tokens=8, kv_blocks=model.kv_blocks, budget=budget)
        model.device.close()
        return [sequence.outputs for sequence in sequences]

    together = run([0, 1, 2, 3], budget=16)
    assert together == [run([index], budget=512)[0] for index in range(4)]
    assert len({tuple(output) for output in together}) == 4


def test_a_known_token_and_a_placeholder_for_it_are_the_same_step(model_dir: Path) -> None:
    config = EngineConfig(model_path=str(model_dir), served_model_name="tiny", block_tokens=8, kv_cache_bytes=1 << 20)
    model = load_model(config)

    def decode(token_ids: tuple[int, ...], *, slot: int, start: int, first: bool = False) -> int:
        row = ScheduledSequence(
            slot=slot,
            token_ids=token_ids,
            input_from_previous_step=not token_ids,
            start_position=start,
            block_table=(slot + 1,),
            sampling=SamplingParameters(temperature=0.0),
            is_first_chunk=first,
        )
        model.device.submit(StepPlan(step_id=start, sequences=(row,)))
        token = model.device.wait().sampled_token_ids[0]
        assert token is not None
        return token

    for slot in (0, 1):
        first = decode((4, 5, 6), slot=slot, start=0, first=True)
    assert decode((), slot=0, start=3) == decode((first,), slot=1, start=3)
    model.device.close()
