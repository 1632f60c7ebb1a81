"""Takes a local cluster down, whatever is left of it, and says what remains.

The same path for an orderly `down` and for the remains of a crash: stop by record, kill what is left in our control
groups, unmount, remove network, groups and files. Never deletes a directory that still has a mount below it: that
could be a volume with the user's data.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from e2e.cluster import cgroups, network, node_images, processes
from e2e.cluster.node import Node, ctr, launch_containerd
from e2e.cluster.shell import CommandError, run, wait_until
from e2e.images.oci import ImageLayout

# Directories the components make outside the state directory, with no option to say where.
OUTSIDE = (
    Path("/var/lib/kubelet"),
    Path("/var/lib/cni"),
    Path("/var/log/containers"),
    Path("/var/log/pods"),
    Path("/run/containerd"),
    Path("/usr/libexec/kubernetes"),
)

PROGRAMS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "coredns",
    "containerd",
    "containerd-shim-runc-v2",
    "runc",
)


def remember_machine(state: Path) -> None:
    """Notes which outside directories exist before the cluster does: those are not ours to remove."""
    (state / "outside.json").write_text(json.dumps([str(path) for path in OUTSIDE if path.exists()]))


def tear_down(state: Path, *, nodes: list[Node]) -> None:
    """Removes the cluster; safe to repeat, and on the remains of a crash. The image stores stay."""
    records = processes.read_records(state / "pids")
    kubelets = [record for record in records if record.name.startswith("kubelet")]
    # Kubelets first, or they would start again what is killed below. SIGTERM would give the others nothing but
    # delay: kube-apiserver waits for its watches to end.
    processes.stop(kubelets, timeout_seconds=2.0)
    processes.stop(records, timeout_seconds=0.0)
    # Container shims, and what a lost record leaves: everything of ours that names the state directory.
    processes.stop(processes.find(PROGRAMS, argument=f"{state}/"), timeout_seconds=0.0)
    for node in nodes:
        cgroups.kill_all(node.cgroup)
    _remove_shim_sockets(state)
    _unmount_below(state)
    for node in nodes:
        _unmount_below(node.store)
        cgroups.remove(node.cgroup)
    network.tear_down(state)
    for node in nodes:
        if node.store.exists():
            tidy_store(node)
    _remove_outside(state)
    remove_tree(state)
    if state.parent.exists() and not any(state.parent.iterdir()):
        state.parent.rmdir()


def tidy_store(node: Node) -> None:
    """Drops containers and their snapshots from the node's store, and images that our cache no longer has.

    For that a containerd without the CRI plugin runs for a moment: with it, containerd would first try to
    bring the dead containers back.
    """
    shutil.rmtree(node.store / "io.containerd.grpc.v1.cri", ignore_errors=True)
    if not (node.store / "io.containerd.metadata.v1.bolt" / "meta.db").exists():
        return
    node.directory.mkdir(parents=True, exist_ok=True)
    configuration = node.directory / "store.toml"
    configuration.write_text(
        f'version = 2\nroot = "{node.store}"\nstate = "{node.directory}/store"\n'
        f'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]\n'
        f'[grpc]\n  address = "{node.socket}"\n'
    )
    record = launch_containerd(node, configuration=configuration)
    try:
        containers = ctr(node, "containers", "list", "--quiet").split()
        if containers:
            ctr(node, "containers", "delete", *containers)
        node_images.forget_old(node, kept=set(ImageLayout().references()))
    finally:
        processes.stop([record])


def leftovers(state: Path, *, nodes: list[Node]) -> list[str]:
    """What is left of a cluster on this machine, one line each; empty when nothing is."""
    found = [f"process {r.pid} {r.name}" for r in processes.find(PROGRAMS, argument=f"{state}/")]
    found += [f"mount {mount}" for mount in _mounts_below(state)]
    found += [f"mount {mount}" for node in nodes for mount in _mounts_below(node.store)]
    found += [f"control group {group}" for node in nodes for group in cgroups.groups(node.cgroup)]
    found += [f"directory {state}"] if state.exists() else []
    found += [f"link {link}" for link in _log_links(state)]
    return found + network.leftovers()


def remove_tree(directory: Path) -> None:
    """Deletes a directory of ours; raises CommandError, deleting nothing, when something is mounted below it."""
    if mounts := _mounts_below(directory):
        raise CommandError(f"{directory} still has mounts below it: {', '.join(map(str, mounts))}")
    if directory.exists():
        shutil.rmtree(directory)


def _unmount_below(directory: Path) -> None:
    for mount in sorted(_mounts_below(directory), reverse=True):
        run(["umount", "--lazy", str(mount)])
    wait_until(lambda: not _mounts_below(directory), what=f"nothing is mounted below {directory}", timeout_seconds=10)


def _mounts_below(directory: Path) -> list[Path]:
    """Mount points below a directory (proc(5), mountinfo field 5, where a space is written as \\040)."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [Path(line.split()[4].replace("\\040", " ")) for line in lines]
    return [point for point in points if point.is_relative_to(directory)]


def _log_links(state: Path) -> list[Path]:
    directory = Path("/var/log/containers")
    if not directory.exists():
        return []
    links = [path for path in directory.iterdir() if path.is_symlink()]
    return [link for link in links if link.readlink().is_relative_to(state)]


def _remove_shim_sockets(state: Path) -> None:
    """Each container's bundle says where its shim listened; a killed shim leaves the socket."""
    for address in state.glob("n*/containerd/io.containerd.runtime.v2.task/*/*/address"):
        socket = Path(address.read_text().strip().removeprefix("unix://"))
        if socket.is_socket():
            socket.unlink()


def _remove_outside(state: Path) -> None:
    for link in _log_links(state):
        link.unlink()
    for result in Path("/var/lib/cni/results").glob(f"{network.BRIDGE_PREFIX}*"):
        result.unlink()
    noted = state / "outside.json"
    if not noted.exists():
        return
    existed = json.loads(noted.read_text())
    for path in OUTSIDE:
        if str(path) not in existed:
            remove_tree(path)
