"""What a cluster offers, whoever provides it; the providers are `local` and `kind`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from e2e.cluster.paths import cache_directory

MAXIMUM_NODES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedGpus:
    """GPUs a node claims to have: the extended resource and the labels real device plugins set."""

    count: int
    product: str
    memory_mebibytes: int
    resource_name: str = "nvidia.com/gpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """What `up` should bring about; `gpus` are advertised by every node."""

    nodes: int = 1
    gpus: SimulatedGpus | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= MAXIMUM_NODES:
            raise ValueError(f"nodes: 1 to {MAXIMUM_NODES}, not {self.nodes}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentStatus:
    """One process (or container, with kind) of the cluster."""

    name: str
    pid: int
    is_running: bool
    log: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterStatus:
    """What `status` prints; `ready_nodes` counts nodes whose Ready condition is True."""

    provider: str
    is_up: bool
    nodes: int = 0
    ready_nodes: int = 0
    components: list[ComponentStatus] = field(default_factory=list)
    image_store_bytes: int = 0


class Cluster(Protocol):
    """A cluster by name. Every method may be called in any state of it, also after a kill -9 of any part."""

    @property
    def provider(self) -> str:
        """`local` or `kind`."""

    @property
    def kubeconfig(self) -> Path:
        """An administrator's kubeconfig; exists while the cluster is up."""

    def up(self, options: ClusterOptions) -> None:
        """Brings the cluster up with at least `options.nodes` Ready nodes; quick when it is up already.

        Raises UserError when the machine lacks something, CommandError when a component fails.
        """

    def down(self, *, purge_images: str = "keep") -> None:
        """Removes the cluster and every trace of it; `purge_images="purge"` also the images it was given."""

    def status(self) -> ClusterStatus:
        """The cluster as it is now."""

    def load_image(self, image: str) -> None:
        """Gives every node an image: a reference from our image cache, or the path of an image archive."""

    def component_logs(self) -> dict[str, Path]:
        """Log file by component, for failure dumps."""


def volume_directory() -> Path:
    """The directory of this machine that every node sees under the same path: where PVC contents go."""
    return cache_directory() / "volumes"
