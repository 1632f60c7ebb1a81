"""Where the cluster command keeps its files; it creates none of them here.

Cache: what is expensive to get and safe to keep (binaries, images, containerd's stores).
State: what belongs to a running cluster and goes with it.
"""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def cache_directory() -> Path:
    """`$MODELFLEET_CACHE`, or `modelfleet` in the user's cache directory."""
    configured = os.environ.get("MODELFLEET_CACHE")
    if configured:
        return Path(configured).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modelfleet"


def state_directory(name: str) -> Path:
    """State of the cluster `name`: under `$MODELFLEET_STATE`, by default /var/lib/modelfleet-cluster.

    Short on purpose: a Unix socket's path may not exceed 107 bytes.
    """
    return Path(os.environ.get("MODELFLEET_STATE") or "/var/lib/modelfleet-cluster") / name


def store_directory(name: str) -> Path:
    """containerd's image stores of the cluster `name`; they outlive `down`, so that no image is imported twice."""
    return cache_directory() / "containerd" / name
