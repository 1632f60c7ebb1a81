"""The only reader: one consistent look at one model's world, from the caches alone. No request is made here.

Must not decide anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from modelfleet_kube.resources import POD, ObjectKey

from modelfleet_operator.caches import CHILD_KINDS, Caches
from modelfleet_operator.state import ApplyError, MountFailure, Observed, PodView, Resource


def observe_model(
    key: ObjectKey, manifest: Mapping[str, Any], *, caches: Caches, apply_errors: tuple[ApplyError, ...]
) -> Observed:
    """What is known of an LLMDeployment, its children and its pods right now (no await: nothing moves meanwhile)."""
    children = [item for kind in CHILD_KINDS for item in caches.children[kind].cache.indexed(key)]
    pods = tuple(PodView.from_manifest(item) for item in caches.children[POD].cache.indexed(key))
    return Observed(
        resource=Resource.from_manifest(manifest),
        children=tuple(children),
        pods=pods,
        mount_failures=tuple(_mount_failures(pods, namespace=key.namespace, caches=caches)),
        apply_errors=apply_errors,
    )


def _mount_failures(pods: Iterable[PodView], *, namespace: str, caches: Caches) -> Iterable[MountFailure]:
    """The latest FailedMount of each pod. A StatefulSet's pod may reuse a name: the uid tells them apart."""
    for pod in pods:
        events = [
            event
            for reflector in caches.volume_events
            for event in reflector.cache.indexed(ObjectKey(namespace, pod.name))
            if event["involvedObject"].get("uid") == pod.uid
        ]
        if events:
            latest = max(events, key=_event_time)
            yield MountFailure(pod_name=pod.name, pod_uid=pod.uid, message=str(latest.get("message") or ""))


def _event_time(event: Mapping[str, Any]) -> str:
    # RFC 3339 in UTC: text order is time order. The newer API leaves lastTimestamp empty.
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")
