"""Safetensors checkpoints, mapped into memory and read tensor by tensor. Never pickle, never remote code.

A tensor from `take` may be a view of the mapped file: copy what is kept, so that the mapping can go.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from modelfleet_engine.errors import ModelError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


class Weights:
    """The tensors of one checkpoint by name, each converted to one dtype. Tracks which names were taken."""

    def __init__(self, files: dict[str, Any], *, dtype: torch.dtype) -> None:
        self._file_of = files
        self._dtype = dtype
        self._taken: set[str] = set()

    @property
    def dtype(self) -> torch.dtype:
        """What `take` converts to, and so what the model computes in."""
        return self._dtype

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def take(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor `name` of `shape`, in `dtype` or else the dtype asked for.

        Raises:
            ModelError: it is missing or has another shape.
        """
        if name not in self._file_of:
            raise ModelError(f"the checkpoint holds no tensor {name!r}")
        tensor: Tensor = self._file_of[name].get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise ModelError(f"tensor {name!r} must be {list(shape)} by config.json, got {list(tensor.shape)}")
        if not tensor.is_floating_point():
            raise ModelError(f"tensor {name!r} must be floating point, got {tensor.dtype} (a quantized checkpoint?)")
        self._taken.add(name)
        return tensor.to(self._dtype if dtype is None else dtype)

    def left(self) -> list[str]:
        """Names in the checkpoint that nothing took, sorted."""
        return sorted(self._file_of.keys() - self._taken)


@contextmanager
def open_weights(model_path: Path, *, dtype: torch.dtype) -> Iterator[Weights]:
    """Maps the checkpoint's files (one, or shards with an index) while the block runs.

    Raises:
        ModelError: there is no safetensors checkpoint, or it is broken or incomplete.
    """
    with ExitStack() as stack:
        file_of: dict[str, Any] = {}
        for path in _checkpoint_files(model_path):
            try:
                opened = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{path} is not a readable safetensors file: {error}") from error
            file_of.update(dict.fromkeys(opened.keys(), opened))
        yield Weights(file_of, dtype=dtype)


def _checkpoint_files(model_path: Path) -> list[Path]:
    index = model_path / INDEX_FILE
    if index.is_file():
        try:
            names = sorted(set(map(str, json.loads(index.read_text())["weight_map"].values())))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index} is not a valid index of shards: {error}") from error
        # A file of the model's own directory, never a path that leads out of it.
        outside = [name for name in names if Path(name).name != name]
        missing = [name for name in names if not (model_path / name).is_file()]
        if outside or missing:
            raise ModelError(f"{index} names files that are not in {model_path}: {', '.join(outside or missing)}")
        return [model_path / name for name in names]
    if (model_path / SINGLE_FILE).is_file():
        return [model_path / SINGLE_FILE]
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in model_path.glob(pattern))
    if pickles:
        given = f"{model_path} holds pickled weights ({pickles[0]})"
        raise ModelError(f"{given}, which can run code when read; supported: safetensors")
    raise ModelError(f"{model_path} holds neither {SINGLE_FILE} nor {INDEX_FILE}")
