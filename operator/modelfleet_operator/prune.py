"""What of our own is no longer wanted. PURE.

Owned children that no desired manifest names go, except the history: ControllerRevisions of past revisions stay up
to a limit, so that going back finds its pinned rendering.
"""

from __future__ import annotations

from collections.abc import Sequence

from modelfleet_operator.revisions import HISTORY_LIMIT
from modelfleet_operator.state import Manifest, ObjectReference, Observed


def prunable(observed: Observed, wanted: Sequence[Manifest]) -> tuple[ObjectReference, ...]:
    """The owned children to delete, by name."""
    keep = {(item["kind"], item["metadata"]["name"]) for item in wanted}
    live = {item["metadata"]["name"] for item in wanted if item["kind"] == "Deployment"}
    history = [
        child
        for child in observed.children
        if child["kind"] == "ControllerRevision" and child["metadata"]["name"] not in live
    ]
    newest_first = sorted(history, key=lambda child: -child["revision"])
    keep |= {("ControllerRevision", name) for name in live}
    keep |= {("ControllerRevision", child["metadata"]["name"]) for child in newest_first[:HISTORY_LIMIT]}
    unwanted = [
        child
        for child in observed.children
        if (child["kind"], child["metadata"]["name"]) not in keep and _may_delete(child, uid=observed.resource.uid)
    ]
    return tuple(sorted((_reference(child) for child in unwanted), key=lambda item: (item.kind, item.name)))


def _may_delete(child: Manifest, *, uid: str) -> bool:
    owners = child["metadata"].get("ownerReferences") or []
    is_ours = any(owner.get("uid") == uid and owner.get("controller") for owner in owners)
    return is_ours and "deletionTimestamp" not in child["metadata"]


def _reference(child: Manifest) -> ObjectReference:
    metadata = child["metadata"]
    return ObjectReference(
        api_version=child["apiVersion"],
        kind=child["kind"],
        name=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata["uid"],
    )
