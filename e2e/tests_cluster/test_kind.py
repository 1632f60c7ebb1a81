"""The kind provider by its configuration and command lines; a Docker daemon is not needed, nor exercised."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from e2e.cluster.interface import ClusterOptions, SimulatedGpus
from e2e.cluster.kind import KindCluster, kind_configuration
from e2e.cluster.paths import REPOSITORY
from e2e.cluster.shell import UserError
from e2e.images.docker import build_app_with_docker
from e2e.images.oci import ImageLayout, single_file_layer
from e2e.images.recipe import APPS


class Recorder:
    """Stands for the terminal: notes the command lines, answers `kind get nodes` from what was created."""

    def __init__(self, nodes: Sequence[str] = ()) -> None:
        self.nodes = list(nodes)
        self.commands: list[list[str]] = []
        self.archives: list[list[str]] = []

    def __call__(self, command: Sequence[str]) -> str:
        self.commands.append(list(command))
        if list(command[:3]) == ["kind", "get", "nodes"]:
            return "\n".join(self.nodes)
        if list(command[:3]) == ["kind", "create", "cluster"]:
            configuration = json.loads(Path(command[command.index("--config") + 1]).read_text())
            self.nodes = [f"test-{index}" for index, _ in enumerate(configuration["nodes"])]
        if list(command[:3]) == ["kind", "load", "image-archive"]:
            with tarfile.open(command[3]) as archive:
                self.archives.append(sorted(archive.getnames()))
        return ""


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODELFLEET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MODELFLEET_STATE", str(tmp_path / "state"))
    return tmp_path


def test_every_node_sees_the_volume_directory_under_its_own_path() -> None:
    configuration = kind_configuration(nodes=3, volumes=Path("/cache/volumes"))
    mounts = [{"hostPath": "/cache/volumes", "containerPath": "/cache/volumes"}]
    assert configuration["nodes"] == [
        {"role": "control-plane", "extraMounts": mounts},
        {"role": "worker", "extraMounts": mounts},
        {"role": "worker", "extraMounts": mounts},
    ]


def test_up_creates_exports_waits_and_advertises_gpus(places: Path) -> None:
    recorder = Recorder()
    gpus = SimulatedGpus(count=8, product="NVIDIA-L4", memory_mebibytes=23034)
    KindCluster("test", runner=recorder).up(ClusterOptions(nodes=1, gpus=gpus))
    kubeconfig = f"{places}/state/test/admin.kubeconfig"
    status = '{"status": {"capacity": {"nvidia.com/gpu": "8"}, "allocatable": {"nvidia.com/gpu": "8"}}}'
    labels = (
        '{"metadata": {"labels": {"nvidia.com/gpu.present": "true", "nvidia.com/gpu.count": "8", '
        '"nvidia.com/gpu.product": "NVIDIA-L4", "nvidia.com/gpu.memory": "23034"}}}'
    )
    kubectl = ["kubectl", f"--kubeconfig={kubeconfig}"]
    assert recorder.commands == [
        ["kind", "get", "nodes", "--name", "test"],
        [
            *("kind", "create", "cluster", "--name", "test", "--image", "kindest/node:v1.34.4"),
            *("--config", f"{places}/state/test/kind.json", "--kubeconfig", kubeconfig),
        ],
        ["kind", "export", "kubeconfig", "--name", "test", "--kubeconfig", kubeconfig],
        [*kubectl, "wait", "--for=condition=Ready", "nodes", "--all", "--timeout=180s"],
        ["kind", "get", "nodes", "--name", "test"],
        [*kubectl, "patch", "node", "test-0", "--subresource=status", "--type=merge", "-p", status],
        [*kubectl, "patch", "node", "test-0", "--type=merge", "-p", labels],
    ]


def test_a_second_up_creates_nothing() -> None:
    recorder = Recorder(nodes=["test-0"])
    KindCluster("test", runner=recorder).up(ClusterOptions(nodes=1))
    assert ["kind", "create"] not in [command[:2] for command in recorder.commands]


def test_more_nodes_than_the_running_cluster_has_are_refused() -> None:
    recorder = Recorder(nodes=["test-0"])
    with pytest.raises(UserError, match="has 1 nodes, not 2: `down` first"):
        KindCluster("test", runner=recorder).up(ClusterOptions(nodes=2))


def test_an_image_of_the_cache_is_loaded_as_a_whole_archive() -> None:
    recorder = Recorder()
    layout = ImageLayout()
    layout.add_image("localhost/x:1", layer=single_file_layer("a", b"A"), configuration={"os": "linux"})
    KindCluster("test", runner=recorder).load_image("localhost/x:1")
    [names] = recorder.archives
    assert len([name for name in names if name.startswith("blobs/sha256/")]) == 3
    assert {"index.json", "oci-layout"} < set(names)
    assert recorder.commands[-1][-2:] == ["--name", "test"]


def test_an_image_that_docker_built_is_loaded_from_docker() -> None:
    recorder = Recorder()
    KindCluster("test", runner=recorder).load_image("localhost/modelfleet/control:dev-1")
    image = "localhost/modelfleet/control:dev-1"
    assert recorder.commands == [["kind", "load", "docker-image", image, "--name", "test"]]


def test_docker_builds_from_the_copied_files_on_a_public_python_image() -> None:
    recorder = Recorder()
    reference = build_app_with_docker(APPS["control"], root=REPOSITORY, runner=recorder)
    listing, building = recorder.commands
    assert listing == ["docker", "image", "ls", "--quiet", reference]
    context = building[-1]
    assert building[:-1] == [
        "docker",
        "build",
        "--build-arg=BASE_IMAGE=python:3.13-slim",
        f"--file={context}/operator/Dockerfile",
        f"--tag={reference}",
    ]


def test_layers_the_receiver_has_are_left_out_of_the_stream(places: Path) -> None:
    layout = ImageLayout(places / "layout")
    layout.add_image("localhost/x:1", layer=single_file_layer("a", b"A"), configuration={"os": "linux"})
    manifest, _, layer = layout.blobs("localhost/x:1")
    output = io.BytesIO()
    layout.stream("localhost/x:1", output, without={layer.digest})
    with tarfile.open(fileobj=io.BytesIO(output.getvalue())) as archive:
        names = archive.getnames()
    assert f"blobs/sha256/{layer.digest[7:]}" not in names
    assert f"blobs/sha256/{manifest.digest[7:]}" in names
