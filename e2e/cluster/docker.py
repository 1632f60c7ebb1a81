"""Whether this machine has Docker and kind; asked by the clusters and by the image builds alike."""

from __future__ import annotations

import shutil
from functools import cache

from e2e.cluster.shell import CommandError, run


@cache
def has_docker_and_kind() -> bool:
    """Whether kind can run here: its program is there and a Docker daemon answers."""
    if shutil.which("kind") is None or shutil.which("docker") is None:
        return False
    try:
        run(["docker", "info"], timeout_seconds=10)
    except CommandError:
        return False
    return True
