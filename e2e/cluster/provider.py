"""Which provider a cluster gets."""

from __future__ import annotations

import shutil

from e2e.cluster.interface import Cluster
from e2e.cluster.kind import KindCluster
from e2e.cluster.local import LocalCluster
from e2e.cluster.shell import CommandError, run


def choose(provider: str, *, name: str) -> Cluster:
    """The cluster `name` of the provider `kind`, `local`, or (`auto`) kind where it can run and else local."""
    local = LocalCluster(name)
    # A local cluster that is there stays in charge, also when Docker was started after it.
    if provider == "kind" or (provider == "auto" and not local.state.exists() and has_docker_and_kind()):
        return KindCluster(name)
    return local


def has_docker_and_kind() -> bool:
    """Whether kind can run here: its program is there and a Docker daemon answers."""
    if shutil.which("kind") is None or shutil.which("docker") is None:
        return False
    try:
        run(["docker", "info"], timeout_seconds=10)
    except CommandError:
        return False
    return True
