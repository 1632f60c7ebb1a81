"""Kubernetes events about an LLMDeployment: what `kubectl describe` shows below the status.

An event that cannot be written is counted and told in the log, and the pass goes on: conditions carry the state,
events only its history. Which events there are, each once, is the plan's affair.
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any

from modelfleet_api import names
from modelfleet_kube.client import Client
from modelfleet_kube.errors import KubeError
from modelfleet_kube.resources import EVENT

from modelfleet_operator.metrics import Metrics
from modelfleet_operator.state import EventRecord, Resource, rfc3339

logger = logging.getLogger(__name__)

# The API's limit for core/v1 events.
MESSAGE_CHARACTERS = 1024


def event_manifest(event: EventRecord, *, resource: Resource, reporter: str, now: datetime) -> dict[str, Any]:
    """A core/v1 Event, named by the server."""
    timestamp = rfc3339(now)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{resource.name}.", "namespace": resource.namespace},
        "involvedObject": {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": resource.name,
            "namespace": resource.namespace,
            "uid": resource.uid,
        },
        "type": event.type,
        "reason": event.reason,
        "message": event.message[:MESSAGE_CHARACTERS],
        "source": {"component": names.FIELD_MANAGER},
        "reportingComponent": names.FIELD_MANAGER,
        "reportingInstance": reporter,
        "firstTimestamp": timestamp,
        "lastTimestamp": timestamp,
        "count": 1,
    }


async def write_event(client: Client, manifest: dict[str, Any], *, metrics: Metrics) -> int:
    """1 where it was written, 0 where it could not be."""
    try:
        await client.create(EVENT, manifest)
    except KubeError as error:
        metrics.event_errors.inc()
        logger.warning("the event %s could not be written: %s", manifest["reason"], error)
        return 0
    return 1
