"""What a wheel holds: each image's packages and no other, and the compiled library where it can run.

The compiler and the script are the real ones; of the sources one small file is enough.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import hatch_build
from hatch_build import LIBRARY, SOURCES, CompilerError, provide_library
from tests_repository.wheels import ROOT, build_wheel, copy_paths, paths_of_build_stage, run_build

IN_WHEEL = "modelfleet_kernels/cpu/libmodelfleet_cpu.so"
ON_X86_LINUX = sys.platform == "linux" and platform.machine() == "x86_64"
needs_compiler = pytest.mark.skipif(
    not ON_X86_LINUX or shutil.which(os.environ.get("CXX") or "c++") is None,
    reason="needs Linux on x86-64 and a C++ compiler",
)
needs_x86_linux = pytest.mark.skipif(not ON_X86_LINUX, reason="needs Linux on x86-64")


@pytest.fixture(autouse=True)
def with_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELFLEET_WITHOUT_NATIVE", raising=False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The repository's packages, and of its native sources the script and the smallest file."""
    packages = ["crds", "kube", "operator", "kernels/modelfleet_kernels", "engine-image"]
    files = ["pyproject.toml", "hatch_build.py", ".gitignore", f"{SOURCES}/build.sh", f"{SOURCES}/supported.cpp"]
    return copy_paths([*packages, *files], to=tmp_path / "tree")


def test_the_control_images_wheel_holds_its_packages_and_runs_everywhere(tmp_path: Path) -> None:
    wheel = build_wheel(copy_paths(paths_of_build_stage("operator/Dockerfile"), to=tmp_path))
    assert wheel.packages == {"modelfleet_api", "modelfleet_kube", "modelfleet_operator", "modelfleet_gateway"}
    assert wheel.libraries == set()
    assert wheel.tag == "py3-none-any"


@needs_compiler
def test_the_engine_images_wheel_holds_its_packages_and_the_library_compiled_elsewhere(
    tree: Path, tmp_path: Path
) -> None:
    stage = copy_paths(paths_of_build_stage("engine-image/Dockerfile"), to=tmp_path / "stage")
    assert not (stage / SOURCES).exists()
    subprocess.run(["sh", tree / SOURCES / "build.sh", stage / LIBRARY], check=True)
    wheel = build_wheel(stage, environment={"CXX": "no-such-compiler"})
    assert wheel.packages == {"modelfleet_api", "modelfleet_kernels", "modelfleet_engine"}
    assert wheel.libraries == {IN_WHEEL}
    assert wheel.tag == "py3-none-linux_x86_64"


@needs_compiler
def test_a_wheel_of_the_tree_holds_a_library_that_loads_and_names_its_platform(tree: Path, tmp_path: Path) -> None:
    wheel = build_wheel(tree)
    assert wheel.libraries == {IN_WHEEL}
    assert wheel.tag == "py3-none-linux_x86_64"
    with zipfile.ZipFile(wheel.path) as archive:
        loaded = ctypes.CDLL(archive.extract(IN_WHEEL, tmp_path))
    assert loaded.modelfleet_cpu_is_supported() in (0, 1)


@needs_compiler
def test_an_editable_install_has_the_library_in_the_tree_and_not_a_second_one_in_the_wheel(tree: Path) -> None:
    wheel = build_wheel(tree, target="wheel:editable")
    assert wheel.libraries == set()
    assert (tree / LIBRARY).exists()


@needs_compiler
def test_without_native_there_is_no_library_not_even_an_older_one(tree: Path) -> None:
    assert provide_library(tree, without=False)
    wheel = build_wheel(tree, environment={"MODELFLEET_WITHOUT_NATIVE": "1"})
    assert wheel.libraries == set()
    assert wheel.tag == "py3-none-any"
    assert not (tree / LIBRARY).exists()


@needs_x86_linux
def test_without_a_compiler_the_build_says_what_to_install_and_how_to_do_without(tree: Path) -> None:
    built = run_build(tree, environment={"CXX": "no-such-compiler"})
    assert built.returncode == 1
    assert (built.stdout + built.stderr).strip() == (
        "there is no C++ compiler (no-such-compiler): install GCC 11 or later (Debian and Ubuntu: apt-get install g++) "
        "or name another compiler in CXX; MODELFLEET_WITHOUT_NATIVE=1 builds without the library, "
        "and the engine then computes with torch alone"
    )


@needs_compiler
def test_sources_that_do_not_compile_fail_the_build_and_leave_the_library_as_it_was(
    tree: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    provide_library(tree, without=False)
    before = (tree / LIBRARY).read_bytes()
    (tree / SOURCES / "broken.cpp").write_text("not C++\n")
    with pytest.raises(CompilerError, match=r"does not compile kernels/native \(see above\): install GCC 11 or later"):
        provide_library(tree, without=False)
    assert "broken.cpp:1:1: error" in capfd.readouterr().err
    assert (tree / LIBRARY).read_bytes() == before
    assert not hatch_build.is_current(tree)


@needs_compiler
def test_the_library_is_compiled_again_when_a_source_changed_and_only_then(tree: Path) -> None:
    source, library = tree / SOURCES / "supported.cpp", tree / LIBRARY
    provide_library(tree, without=False)
    first = library.stat().st_ino, library.stat().st_mtime_ns
    source.touch()
    provide_library(tree, without=False)
    assert (library.stat().st_ino, library.stat().st_mtime_ns) == first
    added = 'extern "C" __attribute__((visibility("default"))) int modelfleet_added() { return 7; }'
    source.write_text(f"{source.read_text()}\n{added}\n")
    provide_library(tree, without=False)
    assert ctypes.CDLL(str(library)).modelfleet_added() == 7


@needs_compiler
def test_a_library_that_somebody_else_put_there_is_replaced(tree: Path) -> None:
    provide_library(tree, without=False)
    (tree / LIBRARY).write_bytes(b"an older one")
    provide_library(tree, without=False)
    assert (tree / LIBRARY).read_bytes().startswith(b"\x7fELF")


@pytest.mark.skipif(
    not (ROOT / LIBRARY).exists() or shutil.which("nm") is None, reason="needs the built library, and nm to look at it"
)
def test_the_library_shows_its_c_interface_and_nothing_of_the_runtime_inside() -> None:
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", "--format=posix", ROOT / LIBRARY], capture_output=True, text=True, check=True
    )
    names = {line.split()[0] for line in listed.stdout.splitlines()}
    assert len(names) > 10
    assert {name for name in names if not name.startswith("modelfleet_")} == set()
