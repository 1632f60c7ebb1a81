"""Two nodes on one machine share nothing."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from e2e.cluster.node import Node, containerd_configuration, kubelet_configuration

NODES = [
    Node(index=index, cluster="test", directory=Path(f"/state/n{index}"), store=Path(f"/store/n{index}"))
    for index in (0, 1)
]


def test_no_place_and_no_address_is_used_by_two_nodes() -> None:
    first, second = (
        json.dumps(
            [
                tomllib.loads(containerd_configuration(node)),
                kubelet_configuration(node, pki=Path("/state/pki")),
            ]
        )
        for node in NODES
    )
    for place in ("/state/n0", "/store/n0", "198.18.0.1", "test-node-1"):
        assert place in first
        assert place not in second


def test_containerd_runs_without_systemd_and_without_the_right_to_lower_oom_scores() -> None:
    settings = tomllib.loads(containerd_configuration(NODES[0]))
    cri = settings["plugins"]["io.containerd.grpc.v1.cri"]
    assert settings["version"] == 2
    assert cri["restrict_oom_score_adj"] is True
    assert cri["netns_mounts_under_state_dir"] is True
    assert cri["containerd"]["runtimes"]["runc"]["options"] == {
        "SystemdCgroup": False,
        "Root": "/state/n0/runc",
    }


def test_each_kubelet_has_a_cgroup_root_of_its_own_and_collects_no_images() -> None:
    settings = [kubelet_configuration(node, pki=Path("/pki")) for node in NODES]
    assert [each["cgroupRoot"] for each in settings] == ["/test-node-1", "/test-node-2"]
    assert [each["imageGCHighThresholdPercent"] for each in settings] == [100, 100]
    assert [each["failCgroupV1"] for each in settings] == [False, False]


def test_sockets_fit_into_the_107_bytes_a_unix_socket_may_have() -> None:
    node = Node(index=2, cluster="x", directory=Path("/var/lib/modelfleet-cluster/modelfleet/n3"), store=Path("/s"))
    assert len(f"{node.socket}.ttrpc") <= 107
