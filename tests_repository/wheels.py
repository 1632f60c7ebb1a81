"""Copies parts of the repository and builds wheels of them, as the images' builds and `pip wheel` do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A built wheel: its tag is the last three parts of its name, `py3-none-any` for one that runs everywhere."""

    path: Path
    names: frozenset[str]

    @property
    def tag(self) -> str:
        return "-".join(self.path.stem.split("-")[-3:])

    @property
    def packages(self) -> set[str]:
        return {name.split("/")[0] for name in self.names if name.endswith(".py")}

    @property
    def libraries(self) -> set[str]:
        return {name for name in self.names if ".so" in name}


def paths_of_build_stage(dockerfile: str) -> list[str]:
    """What the stage called `build` copies from the repository."""
    stage = ""
    copied: list[str] = []
    for line in (ROOT / dockerfile).read_text(encoding="utf-8").splitlines():
        if line.startswith("FROM "):
            stage = line.split()[-1]
        elif line.startswith("COPY ") and "--from" not in line and stage == "build":
            copied += line.split()[1:-1]
    return copied


def copy_paths(paths: Iterable[str], *, to: Path) -> Path:
    """Copies files, and folders as git sees them, into a tree of their own."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *paths],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    return to


def run_build(
    tree: Path, *, target: str = "wheel", environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs hatchling in the tree, which must have it for the test's own Python."""
    return subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", "dist"],
        cwd=tree,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )


def build_wheel(tree: Path, *, target: str = "wheel", environment: Mapping[str, str] | None = None) -> Wheel:
    """Builds the one wheel of a tree."""
    built = run_build(tree, target=target, environment=environment)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = (tree / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return Wheel(path=path, names=frozenset(archive.namelist()))
