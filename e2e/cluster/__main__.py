"""The cluster command: `python -m e2e.cluster {up,down,status,load-image,kubeconfig,build,prerequisites}`.

Exit code 0: done. 1: a component failed. 2: the person has to do something first; one line says what.
"""

from __future__ import annotations

import argparse
import sys
import time

from e2e import images
from e2e.cluster import prerequisites, toolchain
from e2e.cluster.interface import ClusterOptions, ClusterStatus, SimulatedGpus
from e2e.cluster.locks import exclusive
from e2e.cluster.paths import cache_directory
from e2e.cluster.provider import choose
from e2e.cluster.shell import CommandError, UserError, say


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    started = time.monotonic()
    try:
        _run(options)
    except UserError as error:
        say(f"error: {error}")
        return 2
    except CommandError as error:
        say(f"error: {error}")
        return 1
    if options.command in {"up", "down", "load-image", "build"}:
        say(f"{options.command}: done in {time.monotonic() - started:.1f} s")
    return 0


def _run(options: argparse.Namespace) -> None:
    if options.command == "build":
        toolchain.build_all()
        return
    if options.command == "prerequisites":
        prerequisites.install()
        return
    cluster = choose(options.provider, name=options.name)
    lock = exclusive(cache_directory() / "cluster.lock", what="the cluster")
    match options.command:
        case "up":
            with lock:
                cluster.up(ClusterOptions(nodes=options.nodes, gpus=_gpus(options)))
        case "down":
            with lock:
                cluster.down(purge_images="purge" if options.purge else "keep")
        case "status":
            _print_status(cluster.status())
        case "load-image":
            for image in options.images:
                cluster.load_image(images.build(image) if image in images.NAMES else image)
        case "kubeconfig":
            print(cluster.kubeconfig)


def _gpus(options: argparse.Namespace) -> SimulatedGpus | None:
    if options.gpus == 0:
        return None
    return SimulatedGpus(count=options.gpus, product=options.gpu_product, memory_mebibytes=options.gpu_memory)


def _print_status(status: ClusterStatus) -> None:
    print(f"provider     {status.provider}")
    print(f"cluster      {'up' if status.is_up else 'down'}")
    print(f"nodes        {status.ready_nodes} of {status.nodes} Ready")
    print(f"image store  {status.image_store_bytes / 1e6:.0f} MB")
    for component in status.components:
        state = "running" if component.is_running else "gone"
        print(f"  {component.name:<26} {component.pid:>8} {state:<8} {component.log}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m e2e.cluster", description=__doc__)
    parser.add_argument("--name", default="modelfleet", help="the cluster's name (default: %(default)s)")
    parser.add_argument(
        "--provider",
        choices=["auto", "kind", "local"],
        default="auto",
        help="auto: kind where Docker and kind are there, else local",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="bring the cluster up, or check that it is")
    up.add_argument("--nodes", type=int, choices=[1, 2, 3], default=1)
    up.add_argument("--gpus", type=int, default=0, help="simulated GPUs of each node")
    up.add_argument("--gpu-product", default="NVIDIA-H100-80GB-HBM3")
    up.add_argument("--gpu-memory", type=int, default=81559, metavar="MIB")
    down = commands.add_parser("down", help="remove the cluster; containerd's image store stays in the cache")
    down.add_argument("--purge", action="store_true", help="remove the image store, too")
    commands.add_parser("status", help="components, nodes, image store")
    load = commands.add_parser("load-image", help="give the nodes images")
    load.add_argument(
        "images",
        nargs="+",
        help=f"one of ours by name, built if need be ({', '.join(images.NAMES)}), a reference in the image cache, "
        "or an image archive",
    )
    commands.add_parser("kubeconfig", help="print the path of an administrator's kubeconfig")
    commands.add_parser("build", help="build every program of the local cluster into the cache")
    commands.add_parser("prerequisites", help="install what the local provider needs, with apt")
    return parser


if __name__ == "__main__":
    sys.exit(main())
