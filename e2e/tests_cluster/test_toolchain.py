"""Builds are keyed by everything that goes into them."""

from __future__ import annotations

import dataclasses
import re

import pytest

from e2e.cluster import toolchain
from e2e.cluster.gotool import parse_version


def test_the_hash_covers_version_and_flags() -> None:
    tool = toolchain.TOOLS[0]
    hashes = {
        toolchain.content_hash(each)
        for each in (
            tool,
            dataclasses.replace(tool, version="v1.34.5"),
            dataclasses.replace(tool, link_flags=()),
            dataclasses.replace(tool, module="coredns"),
        )
    }
    assert len(hashes) == 4


def test_every_component_of_the_multi_call_binary_has_a_name_in_the_toolchain() -> None:
    source = (toolchain.MODULES / "kube" / "main.go").read_text()
    named = set(re.findall(r'^\t"([a-z-]+)":', source, flags=re.MULTILINE))
    assert named == set(toolchain.TOOLS[0].names)


def test_go_mod_and_the_toolchain_agree_on_the_kubernetes_version() -> None:
    module = (toolchain.MODULES / "kube" / "go.mod").read_text()
    assert f"k8s.io/kubernetes {toolchain.KUBERNETES_VERSION}\n" in module
    staging = {line.split()[-1] for line in module.splitlines() if "=>" in line}
    assert staging == {toolchain.KUBERNETES_VERSION.replace("v1.", "v0.")}


def test_an_unknown_program_is_refused_with_the_known_ones() -> None:
    with pytest.raises(KeyError, match="kubectl"):
        toolchain.binary("kubeadm")


@pytest.mark.parametrize(
    ("output", "version"),
    [
        ("go version go1.24.11 linux/amd64", (1, 24)),
        ("go version go1.26 linux/arm64", (1, 26)),
        ("go version devel +abc", (0, 0)),
    ],
)
def test_go_versions_are_read_from_its_own_words(output: str, version: tuple[int, int]) -> None:
    assert parse_version(output) == version
