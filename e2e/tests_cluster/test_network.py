"""What the network code takes for ours, and the configuration it writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2e.cluster.network import NodeNetwork, cni_configuration, delete_link, is_our_rule


@pytest.mark.parametrize(
    ("line", "is_ours"),
    [
        (":KUBE-SERVICES - [0:0]", True),
        ("-A PREROUTING -m comment --comment x -j KUBE-SERVICES", True),
        ("-A KUBE-SVC-ABC -j RETURN", True),
        ("-A FORWARD -j MODELFLEET-FORWARD", True),
        (":DOCKER - [0:0]", False),
        (":INPUT ACCEPT [12:34]", False),
        ("-A FORWARD -s 10.0.0.0/8 -j ACCEPT", False),
        ("*nat", False),
        ("COMMIT", False),
        ("", False),
    ],
)
def test_only_rules_with_our_chains_are_ours(line: str, is_ours: bool) -> None:
    assert is_our_rule(line) is is_ours


def test_each_node_has_a_range_of_its_own() -> None:
    networks = [NodeNetwork(index=index) for index in range(3)]
    assert [network.bridge for network in networks] == ["mfbr0", "mfbr1", "mfbr2"]
    assert [network.address for network in networks] == ["198.18.0.1", "198.18.1.1", "198.18.2.1"]


def test_pods_route_cluster_traffic_and_everything_else_through_the_bridge() -> None:
    assert cni_configuration(NodeNetwork(index=1), state=Path("/state")) == {
        "cniVersion": "0.4.0",
        "name": "mfbr1",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "mfbr1",
                "isGateway": True,
                "ipMasq": False,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/state/ipam",
                    "ranges": [[{"subnet": "198.18.1.0/24", "gateway": "198.18.1.1"}]],
                    "routes": [{"dst": "198.18.0.0/15"}, {"dst": "0.0.0.0/0"}],
                },
            }
        ],
    }


def test_a_link_that_the_kernel_removed_meanwhile_counts_as_deleted() -> None:
    delete_link("mf-is-gone")
