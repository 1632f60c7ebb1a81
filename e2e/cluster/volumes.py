"""A PersistentVolumeClaim backed by a directory of this machine, as manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def host_volume(name: str, *, namespace: str, host_path: Path, capacity: str = "10Gi") -> list[dict[str, Any]]:
    """A volume and a claim bound to each other and to nothing else; `host_path` as the nodes see it.

    Use a directory below `interface.volume_directory()`: with kind, the nodes see no other.
    """
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            # The empty class: no provisioner may answer this claim.
            "storageClassName": "",
            "volumeName": f"{namespace}-{name}",
            "resources": {"requests": {"storage": capacity}},
        },
    }
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"{namespace}-{name}"},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "capacity": {"storage": capacity},
            "storageClassName": "",
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": namespace, "name": name},
            "hostPath": {"path": str(host_path), "type": "Directory"},
        },
    }
    return [volume, claim]
