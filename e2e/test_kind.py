"""The kind provider itself, where a Docker daemon and kind are there; elsewhere it is listed as not run."""

from __future__ import annotations

import pytest

from e2e.cluster.docker import has_docker_and_kind
from e2e.cluster.interface import ClusterOptions
from e2e.cluster.kind import KindCluster
from e2e.kubectl import Kubectl

pytestmark = pytest.mark.cluster


def test_kind_brings_up_a_ready_node_and_takes_it_down() -> None:
    if not has_docker_and_kind():
        pytest.skip("no Docker daemon and kind here: the kind provider is tested by its command lines only")
    cluster = KindCluster("modelfleet-e2e-kind")
    cluster.up(ClusterOptions(nodes=1))
    try:
        kubectl = Kubectl(kubeconfig=cluster.kubeconfig)
        kubectl.run("wait", "node", "--all", "--for=condition=Ready", "--timeout=120s", timeout_seconds=130)
        assert cluster.status().ready_nodes == 1
    finally:
        cluster.down()
    assert not cluster.status().is_up
