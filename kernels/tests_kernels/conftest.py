"""Which tests are collected: what a backend says that it does not compute is not asked of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from modelfleet_kernels import Needs, select

_PLAIN = {"head_dim": 16, "block_tokens": 16}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out combinations of a backend with a dtype or a geometry that it refuses; test_registry has those."""
    here = Path(__file__).parent
    refused = [item for item in items if here in item.path.parents and _is_refused(item)]
    if refused:
        config.hook.pytest_deselected(items=refused)
        items[:] = [item for item in items if item not in set(refused)]


def _is_refused(item: pytest.Item) -> bool:
    parameters: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    name, geometry = parameters.get("kernels"), parameters.get("geometry")
    if name is None:
        return False
    sizes = _PLAIN if geometry is None else {"head_dim": geometry.head_dim, "block_tokens": geometry.block_tokens}
    needs = Needs(dtype=parameters.get("dtype", torch.bfloat16), **sizes)
    return select("cpu", name).refusal(needs) is not None
