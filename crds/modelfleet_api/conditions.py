"""Condition types and reasons of `LLMDeployment.status`, and the one function that merges a new set into an old.

PURE. A reason ships once: people alert on it. `lastTransitionTime` moves only when `status` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class ConditionType(StrEnum):
    """One link of the chain each; the last two as kstatus knows them, present only while True."""

    ACCEPTED = "Accepted"
    MODEL_CACHED = "ModelCached"
    SCHEDULED = "Scheduled"
    ENGINE_READY = "EngineReady"
    ROUTABLE = "Routable"
    READY = "Ready"
    DEGRADED = "Degraded"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class Reason(StrEnum):
    """Why a condition is as it is; each one a person can act on."""

    ACCEPTED = "Accepted"
    INVALID_SPEC = "InvalidSpec"
    INVALID_TEMPLATE = "InvalidTemplate"
    NAME_CONFLICT = "NameConflict"
    FORBIDDEN = "Forbidden"
    SUSPENDED = "Suspended"
    SCALED_TO_ZERO = "ScaledToZero"
    READY = "AllReplicasReady"
    AVAILABLE = "MinimumReplicasReady"
    SCHEDULED = "Scheduled"
    PENDING = "Pending"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL = "ImagePullBackOff"
    INVALID_IMAGE = "InvalidImageName"
    CREATE_CONTAINER = "CreateContainerError"
    OUT_OF_MEMORY = "OOMKilled"
    CRASH_LOOP = "CrashLoopBackOff"
    ENGINE_EXITED = "EngineExited"
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_DOWNLOADING = "ModelDownloading"
    MODEL_DOWNLOAD_FAILED = "ModelDownloadFailed"
    MODEL_CACHED = "ModelCached"
    VOLUME_NOT_MOUNTED = "VolumeNotMounted"
    EVICTED = "Evicted"
    STARTING = "EngineStarting"
    ENGINE_READY = "EngineReady"
    ROUTABLE = "Routable"
    NOT_ROUTABLE = "NotRoutable"
    ROLLING_OUT = "RollingOut"
    SCALING = "Scaling"
    PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"
    ROLLOUT_FAILING = "NewRevisionNotReady"
    REPLICAS_MISSING = "ReplicasMissing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One decided condition, without times: those are the merge's affair."""

    type: ConditionType
    status: bool | None
    reason: Reason
    message: str

    @property
    def status_word(self) -> str:
        """`True`, `False` or `Unknown` as the API has it."""
        return {True: "True", False: "False", None: "Unknown"}[self.status]


def merge_conditions(
    previous: Iterable[Mapping[str, Any]],
    decided: Iterable[Condition],
    *,
    generation: int,
    now: str,
) -> list[dict[str, Any]]:
    """The list to write: `decided` in its order, transition times kept from `previous` where status is equal."""
    before = {item["type"]: item for item in previous}
    merged = []
    for condition in decided:
        old = before.get(condition.type)
        same = old is not None and old.get("status") == condition.status_word
        merged.append(
            {
                "type": str(condition.type),
                "status": condition.status_word,
                "reason": str(condition.reason),
                "message": condition.message[:1024],
                "observedGeneration": generation,
                "lastTransitionTime": old["lastTransitionTime"] if same and old is not None else now,
            }
        )
    return merged
