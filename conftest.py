"""Repository-wide pytest hooks: when the `gpu` marker skips, the record of what was skipped, Hypothesis' profile."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Examples are the same in every run, and a machine that is busy for a second is no failure.
settings.register_profile(
    "modelfleet", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("modelfleet")

# As the engine sets it (modelfleet_engine.device says why), before any test module loads torch.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _has_cuda() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips `gpu` tests, with the reason in the summary, where no CUDA device is present."""
    gpu_items = [item for item in items if "gpu" in item.keywords]
    if not gpu_items or _has_cuda():
        return
    for item in gpu_items:
        item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Adds each skip and its reason to the file that `make test` prints last."""
    target = os.environ.get("MODELFLEET_SKIP_REPORT")
    if not report.skipped or target is None or not isinstance(report.longrepr, tuple):
        return
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"  {report.nodeid}: {report.longrepr[2].removeprefix('Skipped: ')}\n")
