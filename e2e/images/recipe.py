"""What each image is made from, and the hash that names it. PURE but for reading the repository's files.

An image's reference ends in a hash over everything that goes into it: an image that exists under its reference is
up to date, and nothing is ever rebuilt under an old name.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from e2e.cluster.shell import UserError, run
from e2e.images.pause import PAUSE_IMAGE, REPOSITORY

SUITE = "trixie"
CLEAN = (
    "apt-get clean",
    "rm -rf /var/lib/apt/lists/* /var/cache/apt /var/cache/debconf/*-old /var/log/*.log /var/log/apt",
    "rm -rf /usr/share/doc /usr/share/man /usr/share/info /usr/share/locale /usr/share/lintian",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRecipe:
    """A base image: Debian packages, on nothing (debootstrap) or on another base, as one layer."""

    name: str
    packages: tuple[str, ...]
    on: BaseRecipe | None = None
    setup: tuple[str, ...] = CLEAN

    @property
    def reference(self) -> str:
        digest = hashlib.sha256()
        below = self.on.reference if self.on else SUITE
        digest.update("\0".join((below, *self.packages, "", *self.setup)).encode())
        return f"{REPOSITORY}/{self.name}:{digest.hexdigest()[:12]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AppRecipe:
    """One of our own images: a Dockerfile of the repository, on a base, perhaps with another base to compile on."""

    name: str
    dockerfile: Path
    on: BaseRecipe
    compiler: BaseRecipe | None = None

    @property
    def base_arguments(self) -> dict[str, BaseRecipe]:
        """The Dockerfile's arguments that name an image, and what we give for them."""
        compiler = {"COMPILER_IMAGE": self.compiler} if self.compiler else {}
        return {"BASE_IMAGE": self.on, **compiler}


BASE = BaseRecipe(
    name="base",
    packages=("python3", "python3-pip", "ca-certificates"),
    # An image has no other user of its Python: pip may install into it.
    setup=("rm -f /usr/lib/python3*/EXTERNALLY-MANAGED", *CLEAN),
)
BASE_TORCH = BaseRecipe(
    name="base-torch",
    # The plain BLAS is ten times slower in float32 than OpenBLAS, which takes its place as an alternative.
    packages=("python3-torch", "libopenblas0-pthread"),
    on=BASE,
    # Test programs, and the runtimes for AMD and Intel GPUs that libfabric recommends: torch loads none of them.
    setup=(
        "rm -rf /usr/lib/libtorch-test",
        "cd /usr/lib/x86_64-linux-gnu && rm -f libLLVM* libamd_comgr* libamdhip64* libhsa-runtime64* libze_*",
        # It must still compute.
        "python3 -c 'import torch; assert torch.ones(2, 2, dtype=torch.bfloat16)"
        ".matmul(torch.ones(2, 2).bfloat16()).sum() == 8'",
        *CLEAN,
    ),
)
# Only the engine image's compiled kernels need it, while they are built; its C library is the engine image's own.
BASE_COMPILER = BaseRecipe(name="base-compiler", packages=("g++",), on=BASE)
APPS = {
    "control": AppRecipe(name="control", dockerfile=Path("operator/Dockerfile"), on=BASE),
    "engine": AppRecipe(
        name="engine-cpu",
        dockerfile=Path("engine-image/Dockerfile"),
        on=BASE_TORCH,
        compiler=BASE_COMPILER,
    ),
}
BASES = {"base": BASE, "base-torch": BASE_TORCH, "base-compiler": BASE_COMPILER}


def copied_paths(dockerfile: str) -> list[str]:
    """The sources of the COPY lines, without those from other build stages."""
    found: list[str] = []
    for line in dockerfile.replace("\\\n", " ").splitlines():
        words = line.split()
        if not words or words[0].upper() != "COPY":
            continue
        if any(word.startswith("--from=") for word in words):
            continue
        found += [word for word in words[1:-1] if not word.startswith("--")]
    return found


def source_files(root: Path, *, dockerfile: Path) -> list[PurePosixPath]:
    """The Dockerfile and the files it copies, as git sees them: without what git ignores."""
    paths = copied_paths((root / dockerfile).read_text())
    if not paths:
        return [PurePosixPath(dockerfile)]
    # Under sudo the clone belongs to somebody else, which git distrusts; it only lists names here.
    git = ["git", "-c", "safe.directory=*", "-C", str(root)]
    listed = run([*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *paths])
    files = {PurePosixPath(name) for name in listed.split("\0") if name and (root / name).is_file()}
    return sorted({*files, PurePosixPath(dockerfile)})


def app_reference(recipe: AppRecipe, *, root: Path) -> str:
    """The reference of one of our images as the repository is now."""
    if not (root / recipe.dockerfile).exists():
        raise UserError(f"image {recipe.name}: there is no {recipe.dockerfile}")
    digest = hashlib.sha256("\0".join(base.reference for base in recipe.base_arguments.values()).encode())
    for file in source_files(root, dockerfile=recipe.dockerfile):
        content = hashlib.sha256((root / file).read_bytes()).hexdigest()
        digest.update(f"{file}\0{content}\n".encode())
    return f"{REPOSITORY}/{recipe.name}:dev-{digest.hexdigest()[:12]}"


def image_reference(name: str, *, root: Path) -> str:
    """The reference of `control`, `engine`, a base of BASES or `pause`; KeyError for another name."""
    if name == "pause":
        return PAUSE_IMAGE
    return BASES[name].reference if name in BASES else app_reference(APPS[name], root=root)
