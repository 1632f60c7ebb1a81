"""The build hook of wheels and editable installs: it puts the compiled library of `kernels/native` into the package.

It goes by what the tree has: sources are compiled (Linux on x86-64 only), a library without its sources is taken as
it is, and a tree with neither, such as the control image's, gives a wheel for every platform.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = Path("kernels/native")
LIBRARY = Path("kernels/modelfleet_kernels/cpu/libmodelfleet_cpu.so")
STAMP = LIBRARY.with_name(f"{LIBRARY.name}.stamp")
WITHOUT = "MODELFLEET_WITHOUT_NATIVE"
WAYS_OUT = (
    f"install GCC 11 or later (Debian and Ubuntu: apt-get install g++) or name another compiler in CXX; "
    f"{WITHOUT}=1 builds without the library, and the engine then computes with torch alone"
)


class CompilerError(Exception):
    """The library cannot be compiled here; the message says what to do."""


class NativeLibraryHook(BuildHookInterface[Any]):
    """hatchling finds it by its base class."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Provides the library; a wheel with it is for this platform, an editable install finds it in the tree."""
        try:
            has_library = provide_library(Path(self.root), without=os.environ.get(WITHOUT) == "1")
        except CompilerError as error:
            self.app.abort(str(error))
        if has_library and version == "standard":
            # git ignores the library, and hatchling leaves out what git ignores unless it is named here.
            build_data["artifacts"].append(LIBRARY.as_posix())
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def provide_library(root: Path, *, without: bool) -> bool:
    """Brings the library in the tree up to date, and says whether there is one; raises CompilerError."""
    if without:
        # An older one would be loaded, and may not be what this Python expects.
        (root / LIBRARY).unlink(missing_ok=True)
        (root / STAMP).unlink(missing_ok=True)
        return False
    if not (root / SOURCES).is_dir():
        return (root / LIBRARY).exists()
    if not (sys.platform == "linux" and platform.machine() == "x86_64"):
        return False
    if not is_current(root):
        compile_library(root)
    return True


def is_current(root: Path) -> bool:
    """Whether the library is the one that this hook compiled from the sources as they are."""
    if not ((root / LIBRARY).exists() and (root / STAMP).exists()):
        return False
    return (root / STAMP).read_text(encoding="utf-8") == stamp(root, sources=sources_hash(root))


def sources_hash(root: Path) -> str:
    """One hash over the names and contents of the sources, the script among them."""
    digest = hashlib.sha256()
    for path in sorted((root / SOURCES).glob("[!.]*")):
        digest.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def stamp(root: Path, *, sources: str) -> str:
    """Names the library too: one that somebody compiled by hand is not taken for this hook's."""
    return f"{sources} {hashlib.sha256((root / LIBRARY).read_bytes()).hexdigest()}\n"


def compile_library(root: Path) -> None:
    """Runs the sources' own script; the compiler's messages go where the build's go."""
    compiler = os.environ.get("CXX") or "c++"
    if shutil.which(compiler) is None:
        raise CompilerError(f"there is no C++ compiler ({compiler}): {WAYS_OUT}")
    # Before the compiler reads them: what somebody changes meanwhile is compiled the next time.
    sources = sources_hash(root)
    if subprocess.run(["sh", root / SOURCES / "build.sh", root / LIBRARY], check=False).returncode:
        raise CompilerError(f"{compiler} does not compile {SOURCES} (see above): {WAYS_OUT}")
    (root / STAMP).write_text(stamp(root, sources=sources), encoding="utf-8")
