"""The command line: the same EngineConfig from flags and from a file; errors are one clear line."""

from __future__ import annotations

import argparse
import errno
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelfleet_api.engine_config import EngineConfig
from modelfleet_engine.errors import ExitCode, ModelError, exit_code_of, one_line
from modelfleet_engine.main import main
from modelfleet_engine.settings import ServeOptions, add_serve_arguments, parse_serve_options


@pytest.fixture(autouse=True)
def _keep_signal_handler() -> Iterator[None]:
    """`main` installs a SIGTERM handler; the test process keeps its own."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def _parse(*arguments: str) -> ServeOptions:
    parser = argparse.ArgumentParser()
    add_serve_arguments(parser)
    return parse_serve_options(parser.parse_args(arguments))


def test_a_directory_is_all_that_is_needed(tmp_path: Path) -> None:
    options = _parse(str(tmp_path))

    assert options == ServeOptions(
        config=EngineConfig(model_path=str(tmp_path), served_model_name=tmp_path.name), host="0.0.0.0"
    )


def test_flags_and_file_give_the_same_configuration(tmp_path: Path) -> None:
    flags = {
        "port": 9000,
        "max_model_len": 512,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 64,
        "block_tokens": 16,
        "kv_cache_bytes": 1 << 20,
        "drain_timeout_seconds": 7,
        "accept_after_sigterm_seconds": 1,
        "dtype": "float32",
        "device": "cpu",
        "served_model_name": "short",
        "itl_target_milliseconds": 40,
        "max_queued_tokens": 9000,
        "internal_key_path": "/run/key",
        "otlp_endpoint": "http://collector:4318",
        "kernel_backend": "torch_cpu",
    }
    # What the operator alone sets, and what has a flag without a value.
    assert set(EngineConfig.model_fields) - set(flags) == {
        "version", "model_path", "canonical_id", "tensor_parallel", "prefix_caching",
    }  # fmt: skip
    given = [word for name, value in flags.items() for word in ("--" + name.replace("_", "-"), str(value))]

    from_flags = _parse(str(tmp_path), *given, "--no-prefix-caching")
    file = tmp_path / "engine.json"
    file.write_text(from_flags.config.to_json(), encoding="utf-8")

    assert from_flags.config == EngineConfig(model_path=str(tmp_path), prefix_caching=False, **flags)
    assert _parse("--config", str(file)).config == from_flags.config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "either DIR or --config FILE is needed"),
        (("DIR", "--config", "f"), "--config takes the place of DIR"),
        (("--config", "f", "--port", "1"), "--config takes the place of DIR"),
        (("DIR", "--port", "70000"), "port: Input should be less than or equal to 65535, given 70000"),
        (("DIR", "--max-num-seqs", "0"), "max_num_seqs: Input should be greater than or equal to 1, given 0"),
    ],
)
def test_wrong_usage_is_explained_and_ends_with_2(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["serve", *arguments])

    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the engine configuration cannot be read"),
        ({"servedModelName": "x"}, "modelPath: Field required"),
        ({"modelPath": "/m", "servedModelName": "x", "port": -1}, "port: Input should be greater than or equal to 0"),
    ],
)
def test_a_bad_configuration_file_is_one_line_and_ends_with_3(
    content: object,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    monkeypatch.setenv("MODELFLEET_TERMINATION_LOG", str(log))
    file = tmp_path / "engine.json"
    if content is not None:
        file.write_text(json.dumps(content), encoding="utf-8")

    assert main(["serve", "--config", str(file)]) == 3

    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert error == f"modelfleet-engine: {log.read_text()}\n"


def test_each_kind_of_failure_has_its_own_exit_code() -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    errors = [ModelError("x"), OutOfMemoryError("cuda"), MemoryError(), ValueError("x")]
    allocator = RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: not enough memory: you tried")
    system = [OSError(errno.ENOMEM, "Cannot allocate memory"), OSError(errno.EACCES, "Permission denied")]

    assert [int(exit_code_of(error)) for error in [*errors, allocator, *system]] == [3, 4, 4, 1, 4, 4, 1]


def test_what_torchs_cpu_allocator_really_raises_is_out_of_memory() -> None:
    import torch

    # 4 PB: more than an address space.
    with pytest.raises(RuntimeError) as refusal:
        torch.empty(10**15)

    assert exit_code_of(refusal.value) is ExitCode.OUT_OF_MEMORY


def test_an_error_is_told_in_one_line() -> None:
    assert one_line(ModelError("a\n  b")) == "a b"
    assert one_line(ValueError("a\nb")) == "ValueError: a b"
    assert one_line(MemoryError()) == "out of memory: MemoryError"


def test_nothing_heavy_is_imported_before_the_sigterm_handler_is_in_place() -> None:
    code = (
        "import sys; before = set(sys.modules); import modelfleet_engine.main;"
        "print(sorted(name for name in set(sys.modules) - before if '.' not in name))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    for heavy in ("torch", "aiohttp", "pydantic", "tokenizers", "argparse", "asyncio"):
        assert heavy not in loaded
