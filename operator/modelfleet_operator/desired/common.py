"""What all children share: labels, owner reference, metadata. PURE."""

from __future__ import annotations

from typing import Any

from modelfleet_api import names

from modelfleet_operator.canonical import digest
from modelfleet_operator.state import Resource


def selector_labels(resource: Resource) -> dict[str, str]:
    """The labels that select this model's engine pods, of every revision. Immutable in a Deployment: keep them few."""
    return {names.LABEL_MODEL: resource.name, names.LABEL_ROLE: names.ROLE_ENGINE}


def child_labels(resource: Resource) -> dict[str, str]:
    """The labels of every child."""
    return {
        names.LABEL_NAME: names.SINGULAR,
        names.LABEL_INSTANCE: resource.name,
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        names.LABEL_MODEL: resource.name,
    }


def owner_reference(resource: Resource) -> dict[str, Any]:
    """Deleting the LLMDeployment deletes its children, also when no operator runs."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": resource.name,
        "uid": resource.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def child_metadata(
    resource: Resource,
    *,
    name: str,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Metadata of a child named `name`, with labels and annotations added to the common ones."""
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": resource.namespace,
        "labels": child_labels(resource) | (labels or {}),
        "ownerReferences": [owner_reference(resource)],
    }
    if annotations:
        metadata["annotations"] = annotations
    return metadata


def with_desired_hash(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with a digest of itself: comparing leaves finds drift, but not a leaf that is no longer meant."""
    metadata = manifest["metadata"]
    annotations = metadata.get("annotations", {}) | {names.ANNOTATION_DESIRED_HASH: digest(manifest)}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}
