"""pytest fixtures on top of the cluster command; a test package imports the ones it uses into its conftest."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from e2e.cluster.apiserver import ApiServer
from e2e.cluster.interface import Cluster, ClusterOptions
from e2e.cluster.provider import choose


@pytest.fixture(scope="session")
def api_server() -> Iterator[ApiServer]:
    """One real API server for the whole test session; tests keep apart by namespace.

    Where the binaries are not built yet, this builds them (minutes, with progress): it never skips.
    """
    with ApiServer() as server:
        yield server


@pytest.fixture(scope="session")
def cluster_options() -> ClusterOptions:
    """What the session's cluster must have; a test package that needs more overrides this fixture."""
    return ClusterOptions(nodes=1)


@pytest.fixture(scope="session")
def cluster(cluster_options: ClusterOptions) -> Iterator[Cluster]:
    """One real cluster for the whole test session; tests keep apart by namespace.

    One that is up already is used and stays up; so does a new one where MODELFLEET_KEEP_CLUSTER is set.
    """
    running = choose("auto", name="modelfleet")
    was_up = running.status().is_up
    running.up(cluster_options)
    yield running
    if not was_up and not os.environ.get("MODELFLEET_KEEP_CLUSTER"):
        running.down()
