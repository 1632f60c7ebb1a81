"""Which provider a cluster gets."""

from __future__ import annotations

from e2e.cluster.docker import has_docker_and_kind
from e2e.cluster.interface import Cluster
from e2e.cluster.kind import KindCluster
from e2e.cluster.local import LocalCluster


def choose(provider: str, *, name: str) -> Cluster:
    """The cluster `name` of the provider `kind`, `local`, or (`auto`) kind where it can run and else local."""
    local = LocalCluster(name)
    # A local cluster that is there stays in charge, also when Docker was started after it.
    if provider == "kind" or (provider == "auto" and not local.state.exists() and has_docker_and_kind()):
        return KindCluster(name)
    return local
