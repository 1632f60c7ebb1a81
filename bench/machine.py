"""The one benchmark of the machine: `python -m bench.machine [--bytes N] [--json]`. Every percentage refers to it.

Read bandwidth over a buffer of the packed weights' size and the rate of large matrix products, both through torch, so
that they are limits which the engine's own libraries can reach. Best of several repetitions: noise only slows down.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

# SmolLM2-135M in bfloat16.
DEFAULT_BUFFER_BYTES = 269_060_000
_REPETITIONS = 9
_ROW_FLOATS = 4096
# [M, K] x [K, N]: the weights (64 MB in bfloat16) do not fit the cache, the arithmetic is 64 GFLOP.
_GEMM_ROWS, _GEMM_DEPTH, _GEMM_COLUMNS = 2048, 4096, 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineReport:
    """What the machine is and what it can do. Bandwidth in bytes per second, arithmetic in operations per second."""

    cpu_model: str
    cores: int
    l3_bytes: int | None
    memory_bytes: int
    torch_version: str
    buffer_bytes: int
    read_bytes_per_second_one_thread: float
    read_bytes_per_second: float
    bfloat16_flops: float
    float32_flops: float


def measure_machine(*, buffer_bytes: int = DEFAULT_BUFFER_BYTES) -> MachineReport:
    """Measures in this process, with all usable cores and with one; takes about ten seconds."""
    import torch

    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    one_thread = _read_rate(buffer_bytes)
    torch.set_num_threads(cores)
    return MachineReport(
        cpu_model=_proc_field(Path("/proc/cpuinfo"), "model name"),
        cores=cores,
        l3_bytes=_l3_bytes(),
        memory_bytes=int(_proc_field(Path("/proc/meminfo"), "MemTotal").split()[0]) * 1024,
        torch_version=torch.__version__,
        buffer_bytes=buffer_bytes,
        read_bytes_per_second_one_thread=one_thread,
        read_bytes_per_second=_read_rate(buffer_bytes),
        bfloat16_flops=_gemm_rate("bfloat16"),
        float32_flops=_gemm_rate("float32"),
    )


def _read_rate(buffer_bytes: int) -> float:
    """The faster of two ways to read every float once: a sum, and a matrix-vector product."""
    import torch

    matrix = torch.ones(max(1, buffer_bytes // (4 * _ROW_FLOATS)), _ROW_FLOATS)  # [rows, 4096] float32
    vector = torch.ones(_ROW_FLOATS)  # [4096]
    seconds = min(_best_seconds(matrix.sum), _best_seconds(lambda: matrix @ vector))
    return matrix.nbytes / seconds


def _gemm_rate(dtype_name: str) -> float:
    import torch

    dtype = getattr(torch, dtype_name)
    left = torch.randn(_GEMM_ROWS, _GEMM_DEPTH).to(dtype)  # [M, K]
    right = torch.randn(_GEMM_COLUMNS, _GEMM_DEPTH).to(dtype)  # [N, K]
    seconds = _best_seconds(lambda: torch.nn.functional.linear(left, right))
    return 2 * _GEMM_ROWS * _GEMM_DEPTH * _GEMM_COLUMNS / seconds


def _best_seconds(work: Callable[[], object]) -> float:
    work()
    return min(_seconds(work) for _ in range(_REPETITIONS))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _l3_bytes() -> int | None:
    """The third-level cache of core 0, as the kernel reports it; None where it does not."""
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        if (index / "level").read_text().strip() == "3":
            return int((index / "size").read_text().strip().removesuffix("K")) * 1024
    return None


def _proc_field(path: Path, name: str) -> str:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "0" if name == "MemTotal" else "unknown"


def format_machine(report: MachineReport) -> str:
    """One paragraph for a person."""
    l3 = "unknown" if report.l3_bytes is None else f"{report.l3_bytes / 2**20:.0f} MiB"
    return "\n".join(
        (
            f"machine: {report.cpu_model}, {report.cores} cores, L3 {l3}, "
            f"{report.memory_bytes / 2**30:.0f} GiB, torch {report.torch_version}",
            f"reading {report.buffer_bytes / 1e6:.0f} MB: {report.read_bytes_per_second_one_thread / 1e9:.1f} GB/s "
            f"with one thread, {report.read_bytes_per_second / 1e9:.1f} GB/s with all",
            f"matrix product: bf16 {report.bfloat16_flops / 1e9:.0f} GFLOP/s, "
            f"fp32 {report.float32_flops / 1e9:.0f} GFLOP/s",
        )
    )


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m bench.machine", description=__doc__)
    parser.add_argument("--bytes", type=int, default=DEFAULT_BUFFER_BYTES, help="buffer size (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    report = measure_machine(buffer_bytes=arguments.bytes)
    print(json.dumps(asdict(report), indent=2) if arguments.json else format_machine(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
