"""The operator's one decision: what is observed of a model, and the time -> everything to write. PURE and stateless.

An unchanged world gives an empty plan. Nothing is remembered between passes: an operator that restarts decides the
same from the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from modelfleet_api import names
from modelfleet_api.conditions import Condition, ConditionType, Reason, merge_conditions
from modelfleet_api.llmdeployment import LLMDeploymentSpec
from pydantic import ValidationError

from modelfleet_operator.canonical import is_up_to_date
from modelfleet_operator.conditions import Situation
from modelfleet_operator.desired import children
from modelfleet_operator.desired.common import with_desired_hash
from modelfleet_operator.errors import SpecError, TemplateError
from modelfleet_operator.fleet_view import FleetView, fleet_view
from modelfleet_operator.gates import decide_gates, settling_seconds
from modelfleet_operator.progress import Deadline, deadline_state
from modelfleet_operator.prune import prunable
from modelfleet_operator.revisions import (
    Revision,
    desired_config_map,
    desired_controller_revision,
    desired_deployment,
    read_revisions,
    target_revision,
)
from modelfleet_operator.rollout import RolloutStep, next_step
from modelfleet_operator.state import Manifest, Observed, OperatorSettings, Plan, Resource, rfc3339
from modelfleet_operator.status import next_status, status_events, status_patch

# The children of a deleted LLMDeployment of the same name are being collected: look again soon.
OLD_CHILDREN_RETRY_SECONDS = 2.0

Refusal = tuple[Reason, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """The world as the spec wants it: manifests, and the rollout step they come from."""

    target: Revision
    step: RolloutStep
    first: tuple[dict[str, Any], ...]
    manifests: tuple[dict[str, Any], ...]


def decide(observed: Observed, *, settings: OperatorSettings, now: datetime) -> Plan:
    """The plan for one model; `now` dates condition changes and tells which replica is overdue."""
    resource = observed.resource
    if resource.is_deleting:
        return Plan()
    if (leftover := _child_of_the_dead(observed)) is not None:
        return _wait_for(leftover, resource=resource, now=now)
    view = fleet_view(observed)
    spec, refusal = _parse(observed)
    try:
        wanted = _want(observed, spec, view=view, settings=settings) if spec is not None else None
    except SpecError as error:
        reason = Reason.INVALID_TEMPLATE if isinstance(error, TemplateError) else Reason.INVALID_SPEC
        wanted, refusal = None, (reason, str(error))
    target_hash = wanted.target.hash if wanted is not None else _known_hash(resource.status, "updateRevision")
    deadline = _deadline(view, spec, target_hash=target_hash, now=now)
    situation = Situation(
        spec=spec,
        view=view,
        target_hash=target_hash,
        is_rolling=wanted is not None and _is_rolling(view, wanted),
        refusal=refusal or _refused_children(observed),
        is_overdue=deadline.is_exceeded,
        settling_seconds=None if _was_ready(resource.status) else settling_seconds(view.pods, now=now),
    )
    current_hash = _current_hash(resource.status, wanted)
    status = next_status(resource, situation, current_hash=current_hash, now=rfc3339(now))
    return Plan(
        # A refused child stays in the plan: the writer knows when to try it again.
        apply_first=_stale(observed, wanted.first) if wanted is not None else (),
        apply=_stale(observed, wanted.manifests) if wanted is not None else (),
        delete=prunable(observed, wanted.manifests + wanted.first) if wanted is not None else (),
        gates=decide_gates(observed),
        status=status_patch(resource.status, status),
        events=status_events(resource.status, status),
        requeue_after_seconds=_next_look(situation, deadline),
    )


def _next_look(situation: Situation, deadline: Deadline) -> float | None:
    """When time alone will change the conditions."""
    overdue_seconds = deadline.next_check_seconds if situation.is_incomplete else None
    waits = [seconds for seconds in (situation.settling_seconds, overdue_seconds) if seconds is not None]
    return min(waits) if waits else None


def _was_ready(status: Manifest) -> bool:
    conditions = status.get("conditions") or []
    return any(item["type"] == ConditionType.READY and item["status"] == "True" for item in conditions)


def _parse(observed: Observed) -> tuple[LLMDeploymentSpec | None, Refusal | None]:
    """The spec, or why it cannot be read: an object may predate a rule."""
    try:
        return LLMDeploymentSpec.model_validate(observed.resource.spec), None
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        return None, (Reason.INVALID_SPEC, f"spec.{path}: {first['msg']}" if path else str(first["msg"]))


def _deadline(view: FleetView, spec: LLMDeploymentSpec | None, *, target_hash: str | None, now: datetime) -> Deadline:
    if spec is None or target_hash is None:
        return Deadline(is_exceeded=False)
    limit_seconds = spec.rollout.progress_deadline_seconds
    return deadline_state(view, target_hash=target_hash, limit_seconds=limit_seconds, now=now)


def _want(observed: Observed, spec: LLMDeploymentSpec, *, view: FleetView, settings: OperatorSettings) -> _Wanted:
    resource = observed.resource
    existing = read_revisions(observed.children)
    target = target_revision(resource, spec, existing=existing, settings=settings)
    step = next_step(
        desired=spec.desired_replicas,
        target_hash=target.hash,
        live=view.live,
        current_hash=_known_hash(resource.status, "currentRevision"),
    )
    known = {revision.hash: revision for revision in existing} | {target.hash: target}
    alive = [known[item.hash] for item in view.live if item.hash in known and _still_lives(item.hash, view, step)]
    manifests: list[dict[str, Any]] = [
        children.desired_service(resource),
        children.desired_disruption_budget(resource),
        desired_controller_revision(resource, target),
    ]
    for revision in {revision.hash: revision for revision in [target, *alive]}.values():
        manifests.append(desired_config_map(resource, revision))
        manifests.append(
            desired_deployment(
                resource,
                revision,
                replicas=step.replicas[revision.hash],
                progress_deadline_seconds=spec.rollout.progress_deadline_seconds,
            )
        )
    return _Wanted(
        target=target,
        step=step,
        first=(with_desired_hash(children.desired_service_account(resource)),),
        manifests=tuple(with_desired_hash(manifest) for manifest in manifests),
    )


def _still_lives(revision_hash: str, view: FleetView, step: RolloutStep) -> bool:
    """An old revision's Deployment stays until it is at zero and the last of its pods has drained."""
    wants = step.replicas.get(revision_hash, 0) > 0
    has = any(item.hash == revision_hash and item.replicas > 0 for item in view.live)
    # An evicted pod stays around as Failed for ever: it drains nothing.
    return wants or has or any(pod.revision_hash == revision_hash and not pod.has_ended for pod in view.all_pods)


def _stale(observed: Observed, manifests: tuple[dict[str, Any], ...]) -> tuple[Manifest, ...]:
    """The manifests that the cluster does not hold as they should be."""
    have = {(child["kind"], child["metadata"]["name"]): child for child in observed.children}
    return tuple(
        manifest
        for manifest in manifests
        if not is_up_to_date(have.get((manifest["kind"], manifest["metadata"]["name"])), manifest)
    )


def _is_rolling(view: FleetView, wanted: _Wanted) -> bool:
    """Whether an old revision still has, or should have, replicas."""
    return any(item.hash != wanted.target.hash and item.replicas > 0 for item in view.live)


def _current_hash(status: Manifest, wanted: _Wanted | None) -> str | None:
    """The revision that serves in full: the wanted one once complete, else what was so before."""
    before = _known_hash(status, "currentRevision")
    if wanted is not None and wanted.step.is_complete and wanted.step.replicas[wanted.target.hash] > 0:
        return wanted.target.hash
    return before


def _known_hash(status: Manifest, key: str) -> str | None:
    name = status.get(key)
    return str(name).rpartition("-")[2] if name else None


def _child_of_the_dead(observed: Observed) -> Manifest | None:
    """A re-created LLMDeployment has a new uid; what the old one owned is on its way out."""
    for child in observed.children:
        for owner in child["metadata"].get("ownerReferences") or []:
            is_namesake = owner.get("kind") == names.KIND and owner.get("name") == observed.resource.name
            if is_namesake and owner.get("uid") != observed.resource.uid:
                return child
    return None


def _wait_for(leftover: Manifest, *, resource: Resource, now: datetime) -> Plan:
    """Nothing to do but to say what is waited for."""
    message = f"waiting until {leftover['kind']} {leftover['metadata']['name']} of a deleted {names.KIND} is gone"
    decided = [
        Condition(type=ConditionType.READY, status=False, reason=Reason.PENDING, message=message),
        Condition(type=ConditionType.RECONCILING, status=True, reason=Reason.PENDING, message=message),
    ]
    previous = resource.status.get("conditions") or []
    conditions = merge_conditions(previous, decided, generation=resource.generation, now=rfc3339(now))
    status = {"observedGeneration": resource.generation, "conditions": conditions}
    return Plan(status=status_patch(resource.status, status), requeue_after_seconds=OLD_CHILDREN_RETRY_SECONDS)


def _refused_children(observed: Observed) -> Refusal | None:
    """What the API server said of a child in the pass before."""
    if not observed.apply_errors:
        return None
    error = observed.apply_errors[0]
    reasons = {403: Reason.FORBIDDEN, 409: Reason.NAME_CONFLICT}
    reason = reasons.get(error.status_code, Reason.INVALID_TEMPLATE)
    return reason, f"{error.kind} {error.name}: {error.message}"
