"""Which conditions hold and why. PURE; the reasons of `Ready` are the most telling ones: users see them first."""

from __future__ import annotations

from dataclasses import dataclass

from modelfleet_api import names
from modelfleet_api.conditions import Condition, ConditionType, Reason
from modelfleet_api.llmdeployment import LLMDeploymentSpec

from modelfleet_operator.desired.sources import HUB_SCHEME
from modelfleet_operator.fleet_view import FleetView
from modelfleet_operator.pod_reasons import PodProblem, worst
from modelfleet_operator.state import PodView

_SCHEDULING = frozenset({Reason.UNSCHEDULABLE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What the conditions are decided from. `refusal` is why the spec cannot be acted on, None where it can."""

    spec: LLMDeploymentSpec | None
    view: FleetView
    target_hash: str | None
    is_rolling: bool
    refusal: tuple[Reason, str] | None
    # A replica of the wanted revision is not ready within rollout.progressDeadlineSeconds.
    is_overdue: bool = False
    # The URL was not answering before, and the Service does not know the first ready replica yet: for how long.
    settling_seconds: float | None = None

    @property
    def desired(self) -> int:
        """Replicas asked for; 0 where the spec cannot be read."""
        return self.spec.desired_replicas if self.spec is not None else 0

    @property
    def problem(self) -> PodProblem | None:
        """The most telling problem, the wanted revision's first; none once all wanted replicas serve."""
        if not self.is_incomplete:
            return None
        if self.target_hash is not None:
            of_target = worst(self.view.problems_of(self.target_hash))
            if of_target is not None:
                return of_target
        return worst([problem for _, problem in self.view.problems])

    @property
    def is_stalled(self) -> bool:
        """Overdue, and still short of what is wanted."""
        return self.is_overdue and self.is_incomplete

    @property
    def is_incomplete(self) -> bool:
        """Replicas are missing, or an old revision still serves."""
        return self.is_rolling or self.view.ready < self.desired


def decide_conditions(situation: Situation) -> list[Condition]:
    """All conditions, in the order of the chain a request depends on."""
    decided = [_accepted(situation)]
    if situation.spec is not None and situation.desired > 0:
        if situation.spec.model.source.startswith(HUB_SCHEME):
            decided.append(_model_cached(situation))
        decided += [_scheduled(situation), _engine_ready(situation), _routable(situation)]
    decided.append(_ready(situation))
    problem = situation.problem
    if problem is not None:
        decided.append(_condition(ConditionType.DEGRADED, problem.reason, problem.message, status=True))
    elif situation.is_stalled:
        message = f"revision {situation.target_hash} does not get ready, and its pods show no cause"
        decided.append(_condition(ConditionType.DEGRADED, Reason.ROLLOUT_FAILING, message, status=True))
    progress = _progress(situation)
    return [*decided, progress] if progress is not None else decided


def _accepted(situation: Situation) -> Condition:
    if situation.refusal is not None:
        reason, message = situation.refusal
        return _condition(ConditionType.ACCEPTED, reason, message, status=False)
    return _condition(ConditionType.ACCEPTED, Reason.ACCEPTED, "the spec is valid", status=True)


def _model_cached(situation: Situation) -> Condition:
    """Hub models: the init container has fetched the weights into the pod."""
    failed = [
        problem
        for _, problem in situation.view.problems
        if problem.reason in (Reason.MODEL_DOWNLOAD_FAILED, Reason.MODEL_NOT_FOUND)
    ]
    fetched = sum(_has_fetched(pod) for pod in situation.view.pods)
    if fetched:
        message = f"{fetched} of {len(situation.view.pods)} pods have the model"
        return _condition(ConditionType.MODEL_CACHED, Reason.MODEL_CACHED, message, status=True)
    first = worst(failed)
    if first is not None:
        return _condition(ConditionType.MODEL_CACHED, first.reason, first.message, status=False)
    return _condition(
        ConditionType.MODEL_CACHED, Reason.MODEL_DOWNLOADING, "the model is being downloaded", status=False
    )


def _has_fetched(pod: PodView) -> bool:
    ended = [item.terminated for item in pod.init_containers if item.name == names.FETCH_CONTAINER]
    return any(end is not None and end.exit_code == 0 for end in ended)


def _scheduled(situation: Situation) -> Condition:
    view = situation.view
    waiting = [problem for _, problem in view.problems if problem.reason in _SCHEDULING]
    if waiting:
        return _condition(ConditionType.SCHEDULED, Reason.UNSCHEDULABLE, waiting[0].message, status=False)
    placed = sum(pod.is_scheduled for pod in view.pods)
    words = f"{placed} of {situation.desired} replicas have a node"
    if placed >= situation.desired:
        return _condition(ConditionType.SCHEDULED, Reason.SCHEDULED, words, status=True)
    return _condition(ConditionType.SCHEDULED, Reason.PENDING, words, status=False)


def _engine_ready(situation: Situation) -> Condition:
    alive = sum(pod.has_containers_ready for pod in situation.view.pods)
    words = f"{alive} of {situation.desired} engines are ready"
    if alive >= 1:
        return _condition(ConditionType.ENGINE_READY, Reason.ENGINE_READY, words, status=True)
    return _not_yet(ConditionType.ENGINE_READY, situation, words=words)


def _routable(situation: Situation) -> Condition:
    routable = sum(pod.is_routable is True and pod.has_containers_ready for pod in situation.view.pods)
    words = f"{routable} of {situation.desired} replicas are routable"
    reason = Reason.ROUTABLE if routable else Reason.NOT_ROUTABLE
    return _condition(ConditionType.ROUTABLE, reason, words, status=routable > 0)


def _ready(situation: Situation) -> Condition:
    ready, desired = situation.view.ready, situation.desired
    words = f"{ready} of {desired} replicas are ready"
    if ready and situation.settling_seconds is not None:
        message = f"{words}; the Service is learning of the first one"
        return _condition(ConditionType.READY, Reason.NOT_ROUTABLE, message, status=False)
    if ready and (desired or situation.spec is None):
        reason = Reason.READY if ready >= desired and not situation.is_rolling else Reason.AVAILABLE
        return _condition(ConditionType.READY, reason, words, status=True)
    if situation.refusal is not None:
        reason, message = situation.refusal
        return _condition(ConditionType.READY, reason, message, status=False)
    if situation.spec is not None and situation.spec.suspend:
        message = "spec.suspend is true: no replica runs and nothing is served"
        return _condition(ConditionType.READY, Reason.SUSPENDED, message, status=False)
    if desired == 0:
        return _condition(ConditionType.READY, Reason.SCALED_TO_ZERO, "spec.replicas is 0", status=False)
    return _not_yet(ConditionType.READY, situation, words=words)


def _not_yet(kind: ConditionType, situation: Situation, *, words: str) -> Condition:
    """False, with the problem if there is one, else with how far the start has come."""
    problem = situation.problem
    if problem is not None:
        return _condition(kind, problem.reason, problem.message, status=False)
    view = situation.view
    if not view.pods:
        return _condition(kind, Reason.PENDING, f"{words}; the pods are being created", status=False)
    if any(not pod.is_scheduled for pod in view.pods):
        return _condition(kind, Reason.PENDING, f"{words}; waiting for the scheduler", status=False)
    fetching = any(item.is_running for pod in view.pods for item in pod.init_containers)
    reason = Reason.MODEL_DOWNLOADING if fetching else Reason.STARTING
    return _condition(kind, reason, words, status=False)


def _progress(situation: Situation) -> Condition | None:
    """Reconciling or Stalled, never both, absent at rest (kstatus)."""
    if situation.refusal is not None:
        reason, message = situation.refusal
        return _condition(ConditionType.STALLED, reason, message, status=True)
    spec, view = situation.spec, situation.view
    if spec is not None and situation.is_stalled:
        problem = situation.problem
        told = f": {problem.message}" if problem is not None else ""
        message = f"a replica did not get ready within {spec.rollout.progress_deadline_seconds} s{told}"
        return _condition(ConditionType.STALLED, Reason.PROGRESS_DEADLINE_EXCEEDED, message, status=True)
    if situation.is_rolling:
        message = f"revision {situation.target_hash} replaces the one before it"
        return _condition(ConditionType.RECONCILING, Reason.ROLLING_OUT, message, status=True)
    is_settling = situation.settling_seconds is not None
    if is_settling or view.ready != situation.desired or len(view.pods) != situation.desired:
        message = f"{view.ready} of {situation.desired} replicas are ready"
        return _condition(ConditionType.RECONCILING, Reason.SCALING, message, status=True)
    return None


def _condition(kind: ConditionType, reason: Reason, message: str, *, status: bool) -> Condition:
    return Condition(type=kind, status=status, reason=reason, message=message)
