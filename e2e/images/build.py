"""Every image by its short name: `build("engine")` returns a reference that the cluster's `load-image` takes."""

from __future__ import annotations

from pathlib import Path

from e2e.cluster.docker import has_docker_and_kind
from e2e.cluster.locks import exclusive
from e2e.cluster.paths import REPOSITORY, cache_directory
from e2e.images.buildah import build_app, build_base, remove_from_storage
from e2e.images.docker import build_app_with_docker
from e2e.images.oci import ImageLayout
from e2e.images.pause import build_pause
from e2e.images.recipe import APPS, BASES
from e2e.images.recipe import image_reference as recipe_reference

NAMES = ("pause", *BASES, *APPS)
# Enough for a rollback or a switch of branches without a build.
VERSIONS_KEPT = 3


def build(name: str, *, root: Path = REPOSITORY) -> str:
    """Builds the image unless the cache has it as the repository is now, and returns its reference.

    Raises KeyError for a name not in NAMES, UserError and CommandError when it cannot be built.
    """
    if name in APPS and has_docker_and_kind():
        return build_app_with_docker(APPS[name], root=root)
    layout = ImageLayout()
    with exclusive(cache_directory() / "images" / "build.lock", what="building images"):
        if name == "pause":
            return build_pause(layout)
        if name in BASES:
            reference = build_base(BASES[name], layout=layout)
        else:
            reference = build_app(APPS[name], root=root, layout=layout)
        forget_old(layout)
    return reference


def forget_old(layout: ImageLayout, *, versions: int = VERSIONS_KEPT) -> None:
    """Drops all but the newest `versions` images of each name from the cache and from buildah's storage."""
    if old := old_references(layout, versions=versions):
        layout.keep(set(layout.references()) - set(old))
        remove_from_storage(old)


def old_references(layout: ImageLayout, *, versions: int) -> list[str]:
    """All but the newest `versions` images of each name."""
    return [reference for same in layout.repositories().values() for reference in same[:-versions]]


def image_reference(name: str, *, root: Path = REPOSITORY) -> str:
    """The reference `build(name)` returns, without building."""
    return recipe_reference(name, root=root)
