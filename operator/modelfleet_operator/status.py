"""The status to write, and the Events that a change of it is worth. PURE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelfleet_api import names
from modelfleet_api.conditions import ConditionType, Reason, merge_conditions

from modelfleet_operator.conditions import Situation, decide_conditions
from modelfleet_operator.desired.common import selector_labels
from modelfleet_operator.state import EventRecord, Manifest, Resource

# The bound of status.revisions in the CRD: one more, and the whole status would be refused.
MAX_REVISIONS = 32


def next_status(resource: Resource, situation: Situation, *, current_hash: str | None, now: str) -> dict[str, Any]:
    """The whole status as it should be now, in the operator's fields."""
    view = situation.view
    status: dict[str, Any] = {
        "observedGeneration": resource.generation,
        "url": names.model_url(name=resource.name, namespace=resource.namespace),
        "selector": ",".join(f"{key}={value}" for key, value in sorted(selector_labels(resource).items())),
        "replicas": len(view.pods),
        "readyReplicas": view.ready,
        "drainingReplicas": view.draining,
        # A spec that cannot be read asks for nothing new.
        "desiredReplicas": situation.desired if situation.spec else resource.status.get("desiredReplicas", 0),
        "currentRevision": _revision(resource, current_hash),
        "updateRevision": _revision(resource, situation.target_hash),
        "revisions": _revisions(resource, situation),
        "conditions": merge_conditions(
            resource.status.get("conditions") or [],
            decide_conditions(situation),
            generation=resource.generation,
            now=now,
        ),
    }
    if situation.spec is not None:
        status["model"] = {"name": situation.spec.model.name or resource.name}
    return status


def status_patch(before: Manifest, after: Mapping[str, Any]) -> dict[str, Any] | None:
    """The merge patch from one status to the next; None where nothing changes."""
    patch = {
        key: value for key, value in after.items() if before.get(key) != value and (value is not None or key in before)
    }
    return patch or None


def status_events(before: Manifest, after: Mapping[str, Any]) -> tuple[EventRecord, ...]:
    """One Event per change a person would want to hear of; derived from the change, so never repeated."""
    events: list[EventRecord] = []
    if after.get("updateRevision") and before.get("updateRevision") != after["updateRevision"]:
        events.append(_event("RevisionChanged", f"rolling out revision {after['updateRevision']}"))
    if "desiredReplicas" in before and before["desiredReplicas"] != after["desiredReplicas"]:
        words = f"from {before['desiredReplicas']} to {after['desiredReplicas']} replicas"
        events.append(_event("Scaled", words))
    known = {item["type"]: item for item in before.get("conditions") or []}
    for condition in after["conditions"]:
        events += _condition_events(known.get(condition["type"]), condition)
    return tuple(events)


def _condition_events(before: Manifest | None, after: Mapping[str, Any]) -> list[EventRecord]:
    same = before is not None and (before["status"], before["reason"]) == (after["status"], after["reason"])
    if same:
        return []
    kind, is_true = after["type"], after["status"] == "True"
    if kind == ConditionType.READY and is_true and (before is None or before["status"] != "True"):
        return [_event("Ready", str(after["message"]))]
    if kind == ConditionType.READY and not is_true and before is not None and before["status"] == "True":
        is_wished = after["reason"] in (Reason.SUSPENDED, Reason.SCALED_TO_ZERO)
        message = f"{after['reason']}: {after['message']}"
        return [EventRecord(type="Normal" if is_wished else "Warning", reason="NotReady", message=message)]
    if (kind == ConditionType.ACCEPTED and not is_true) or kind in (ConditionType.DEGRADED, ConditionType.STALLED):
        return [EventRecord(type="Warning", reason=after["reason"], message=after["message"])]
    return []


def _event(reason: str, message: str) -> EventRecord:
    return EventRecord(type="Normal", reason=reason, message=message)


def _revision(resource: Resource, revision_hash: str | None) -> str | None:
    return names.revision_name(name=resource.name, revision_hash=revision_hash) if revision_hash else None


def _revisions(resource: Resource, situation: Situation) -> list[dict[str, Any]]:
    """Live revisions, newest first."""
    return [
        {
            "name": names.revision_name(name=resource.name, revision_hash=item.hash),
            "revision": max(1, item.number),
            "replicas": item.replicas,
            "readyReplicas": item.ready,
        }
        for item in sorted(situation.view.live, key=lambda item: -item.number)[:MAX_REVISIONS]
    ]
