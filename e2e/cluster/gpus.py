"""Simulated GPUs: the extended resource and the node labels that real device plugins set, and no device.

The scheduler then places and refuses pods exactly as in production. Providers apply the patches (`kubectl`).
"""

from __future__ import annotations

import json

from e2e.cluster.interface import SimulatedGpus
from e2e.cluster.shell import Runner


def labels(gpus: SimulatedGpus) -> dict[str, str]:
    """The labels of NVIDIA's GPU feature discovery; memory is in MiB, as theirs is."""
    return {
        "nvidia.com/gpu.present": "true",
        "nvidia.com/gpu.count": str(gpus.count),
        "nvidia.com/gpu.product": gpus.product,
        "nvidia.com/gpu.memory": str(gpus.memory_mebibytes),
    }


def advertise(gpus: SimulatedGpus, *, node: str, kubectl: Runner) -> None:
    """Gives a node its GPUs; `kubectl` runs kubectl with the arguments it is given."""
    quantity = {gpus.resource_name: str(gpus.count)}
    status = {"status": {"capacity": quantity, "allocatable": quantity}}
    kubectl(["patch", "node", node, "--subresource=status", "--type=merge", "-p", json.dumps(status)])
    metadata = {"metadata": {"labels": labels(gpus)}}
    kubectl(["patch", "node", node, "--type=merge", "-p", json.dumps(metadata)])
