"""Builds the images with buildah, as root and without a daemon, into the image cache (`oci.ImageLayout`).

buildah's own storage lies in the cache too and holds the layers to build upon. Machines behind a proxy that signs
with its own authority are served: the host's certificate bundle is mounted during builds, never copied.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from e2e.cluster.paths import cache_directory
from e2e.cluster.shell import CommandError, UserError, run, run_long, say
from e2e.images.oci import ImageLayout
from e2e.images.recipe import SUITE, AppRecipe, BaseRecipe, app_reference, source_files

CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
# A fixed time for every copied file: the same content then gives the same layer.
COPIED_MTIME = 1_577_836_800


def build_base(recipe: BaseRecipe, *, layout: ImageLayout) -> str:
    """Builds a base image (and the one below it) unless the cache has it; returns its reference."""
    if recipe.reference in layout.references():
        return recipe.reference
    started = time.monotonic()
    if recipe.on is None:
        container = _buildah("from", "scratch").strip()
    else:
        build_base(recipe.on, layout=layout)
        _need_in_storage(recipe.on.reference, layout=layout)
        container = _buildah("from", "--pull-never", recipe.on.reference).strip()
    try:
        if recipe.on is None:
            _debootstrap(container, recipe=recipe)
        else:
            packages = " ".join(recipe.packages)
            install = f"apt-get update -qq && apt-get install -qq -y --no-install-recommends {packages}"
            _run_in(container, script=install, what=f"installing {packages}", log=f"{recipe.name}-packages")
        _run_in(container, script=" && ".join(recipe.setup), what="cleaning up", log=f"{recipe.name}-clean")
        _buildah("commit", "--quiet", container, recipe.reference)
    finally:
        _buildah("rm", container)
    _push(recipe.reference, layout=layout)
    say(f"built {recipe.reference} in {time.monotonic() - started:.0f} s")
    return recipe.reference


def build_app(recipe: AppRecipe, *, root: Path, layout: ImageLayout) -> str:
    """Builds one of our images unless the cache has it as the repository is now; returns its reference."""
    reference = app_reference(recipe, root=root)
    if reference in layout.references():
        return reference
    started = time.monotonic()
    for base in recipe.base_arguments.values():
        build_base(base, layout=layout)
        _need_in_storage(base.reference, layout=layout)
    with tempfile.TemporaryDirectory(prefix="modelfleet-image-") as temporary:
        context = Path(temporary) / "context"
        stage(root, dockerfile=recipe.dockerfile, context=context)
        command = [
            "build",
            "--layers",
            "--pull-never",
            "--network=host",
            *(f"--build-arg={argument}={base.reference}" for argument, base in recipe.base_arguments.items()),
            *_mounts(Path(temporary)),
            f"--file={context / recipe.dockerfile}",
            f"--tag={reference}",
            str(context),
        ]
        _buildah_long(command, what=f"building {recipe.name}", log=recipe.name)
    _push(reference, layout=layout)
    say(f"built {reference} in {time.monotonic() - started:.0f} s")
    return reference


def remove_from_storage(references: Sequence[str]) -> None:
    """Removes images, and the layers only they had, from buildah's own storage."""
    present = set(_buildah("images", "--format", "{{.Name}}:{{.Tag}}").split())
    if removed := [reference for reference in references if reference in present]:
        _buildah("rmi", *removed)


def _debootstrap(container: str, *, recipe: BaseRecipe) -> None:
    root = _buildah("mount", container).strip()
    try:
        # No documentation and no translations, neither now nor in the layers above.
        excludes = Path(root) / "etc/dpkg/dpkg.cfg.d/excludes"
        excludes.parent.mkdir(parents=True)
        excludes.write_text(
            "".join(f"path-exclude=/usr/share/{name}/*\n" for name in ("doc", "man", "info", "locale", "lintian"))
        )
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(recipe.packages)}", SUITE, root]
        if mirror := os.environ.get("MODELFLEET_DEBIAN_MIRROR"):
            command.append(mirror)
        run_long(command, what=f"debootstrap {SUITE}", log=_log(recipe.name))
        # Builds mount this machine's settings over it, which needs a file to be there.
        (Path(root) / "etc/pip.conf").touch()
    finally:
        _buildah("umount", container)


def stage(root: Path, *, dockerfile: Path, context: Path) -> None:
    """Copies what the Dockerfile needs, and nothing else, into a build context."""
    for file in source_files(root, dockerfile=dockerfile):
        target = context / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / file, target)
        target.chmod(0o755 if os.access(root / file, os.X_OK) else 0o644)
    for directory, names, files in os.walk(context):
        for name in (*names, *files):
            os.utime(Path(directory) / name, (COPIED_MTIME, COPIED_MTIME))


def _mounts(temporary: Path) -> list[str]:
    """Mounts that let apt and pip work in a build as they do on this machine."""
    settings = temporary / "pip.conf"
    lines = ["[global]", "disable-pip-version-check = true", "root-user-action = ignore"]
    mounts = [f"--volume={settings}:/etc/pip.conf:ro"]
    if Path(CERTIFICATES).exists():
        lines.append(f"cert = {CERTIFICATES}")
        mounts.append(f"--volume={CERTIFICATES}:{CERTIFICATES}:ro")
    for variable, name in (("PIP_INDEX_URL", "index-url"), ("PIP_EXTRA_INDEX_URL", "extra-index-url")):
        if value := os.environ.get(variable):
            lines.append(f"{name} = {value}")
    settings.write_text("\n".join(lines) + "\n")
    return mounts


def _need_in_storage(reference: str, *, layout: ImageLayout) -> None:
    """Brings an image from the cache into buildah's storage, where that was emptied in the meantime."""
    try:
        _buildah("inspect", "--type=image", reference)
    except CommandError:
        pulled = _buildah("pull", "--quiet", f"oci:{layout.directory}:{reference}").strip()
        _buildah("tag", pulled, reference)


def _push(reference: str, *, layout: ImageLayout) -> None:
    # Layers the layout has already are neither compressed nor written again.
    layout.directory.mkdir(parents=True, exist_ok=True)
    _buildah("push", "--quiet", reference, f"oci:{layout.directory}:{reference}")


def _run_in(container: str, *, script: str, what: str, log: str) -> None:
    with tempfile.TemporaryDirectory(prefix="modelfleet-image-") as temporary:
        mounts = _mounts(Path(temporary))
        shell = ["env", "DEBIAN_FRONTEND=noninteractive", "sh", "-ec", script]
        _buildah_long(["run", *mounts, container, "--", *shell], what=what, log=log)


def _buildah(*arguments: str) -> str:
    return run([*_command(), *arguments], env=_environment())


def _buildah_long(arguments: Sequence[str], *, what: str, log: str) -> None:
    run_long([*_command(), *arguments], what=what, log=_log(log), env=_environment())


def _command() -> list[str]:
    if os.geteuid() != 0:
        raise UserError("images are built as root: use sudo")
    return ["buildah", "--root", str(cache_directory() / "images" / "buildah")]


def _environment() -> dict[str, str]:
    return {"STORAGE_DRIVER": "overlay", "BUILDAH_ISOLATION": "chroot"}


def _log(name: str) -> Path:
    return cache_directory() / "logs" / f"image-{name}.log"
