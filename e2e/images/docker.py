"""Builds our images with Docker, where kind is the cluster's provider: no root needed, a public Python image below.

The project's own CI machines have no Docker: this is tested by its command lines only (`tests_cluster`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from e2e.cluster.paths import cache_directory
from e2e.cluster.shell import Runner, run, run_long
from e2e.images.buildah import stage
from e2e.images.recipe import AppRecipe, app_reference

PYTHON_IMAGE = "python:3.13-slim"


def build_app_with_docker(recipe: AppRecipe, *, root: Path, runner: Runner | None = None) -> str:
    """Builds one of our images unless Docker has it as the repository is now; returns its reference."""
    reference = app_reference(recipe, root=root)
    if (runner or run)(["docker", "image", "ls", "--quiet", reference]).strip():
        return reference
    with tempfile.TemporaryDirectory(prefix="modelfleet-image-") as temporary:
        context = Path(temporary)
        stage(root, dockerfile=recipe.dockerfile, context=context)
        (runner or _run_with_progress)(
            [
                "docker",
                "build",
                f"--build-arg=BASE_IMAGE={PYTHON_IMAGE}",
                f"--file={context / recipe.dockerfile}",
                f"--tag={reference}",
                str(context),
            ]
        )
    return reference


def _run_with_progress(command: Sequence[str]) -> str:
    run_long(command, what="docker build", log=cache_directory() / "logs" / "docker-build.log")
    return ""
