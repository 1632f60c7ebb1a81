"""Volumes, DNS and options: what the cluster command hands to the API server."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2e.cluster.__main__ import main
from e2e.cluster.control_plane import ControlPlane
from e2e.cluster.interface import ClusterOptions
from e2e.cluster.services import corefile, dns_manifests
from e2e.cluster.volumes import host_volume

PLANE = ControlPlane(directory=Path("/state"), address="198.18.0.1", secure_port=6443, etcd_port=1, etcd_peer_port=2)


def test_a_host_volume_and_its_claim_are_bound_to_each_other_and_to_nothing_else() -> None:
    volume, claim = host_volume("model", namespace="team", host_path=Path("/data/model"))
    assert volume["spec"]["claimRef"] == {"namespace": "team", "name": "model"}
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"] == "team-model"
    assert claim["spec"]["storageClassName"] == volume["spec"]["storageClassName"] == ""
    assert volume["spec"]["hostPath"] == {"path": "/data/model", "type": "Directory"}


def test_the_dns_service_points_to_the_process_on_the_host() -> None:
    service, endpoints, *_ = dns_manifests(PLANE)
    assert service["spec"]["clusterIP"] == "198.19.0.10"
    assert "selector" not in service["spec"]
    assert endpoints["endpoints"] == [{"addresses": ["198.18.0.1"], "conditions": {"ready": True}}]
    assert [port["port"] for port in endpoints["ports"]] == [10053, 10053]


@pytest.mark.parametrize("forward", [True, False])
def test_other_names_are_forwarded_only_where_there_is_a_resolver(forward: bool) -> None:
    assert ("forward . /etc/resolv.conf" in corefile(PLANE, forward=forward)) is forward


@pytest.mark.parametrize("nodes", [0, 4])
def test_a_cluster_has_one_to_three_nodes(nodes: int) -> None:
    with pytest.raises(ValueError, match=f"nodes: 1 to 3, not {nodes}"):
        ClusterOptions(nodes=nodes)


def test_loading_an_image_into_a_cluster_that_is_down_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MODELFLEET_STATE", str(tmp_path))
    assert main(["--provider", "local", "load-image", "localhost/x:1"]) == 2
    assert capsys.readouterr().err == "error: the cluster is not up: `python -m e2e.cluster up`\n"


def test_status_of_a_cluster_that_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MODELFLEET_STATE", str(tmp_path))
    monkeypatch.setenv("MODELFLEET_CACHE", str(tmp_path))
    assert main(["--provider", "local", "status"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "provider     local",
        "cluster      down",
        "nodes        0 of 0 Ready",
        "image store  0 MB",
    ]


def test_missing_programs_are_one_line_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MODELFLEET_STATE", str(tmp_path))
    monkeypatch.setenv("MODELFLEET_CACHE", str(tmp_path))
    monkeypatch.setattr("e2e.cluster.prerequisites.PROGRAMS", {"no-such-program": "some-package"})
    monkeypatch.setattr("e2e.cluster.prerequisites.CNI_PLUGINS", (str(tmp_path),))
    monkeypatch.setattr("e2e.cluster.prerequisites.KEYRING", tmp_path)
    assert main(["--provider", "local", "up"]) == 2
    assert capsys.readouterr().err == (
        "error: install: containernetworking-plugins some-package "
        "(`python -m e2e.cluster prerequisites` does it with apt)\n"
    )
