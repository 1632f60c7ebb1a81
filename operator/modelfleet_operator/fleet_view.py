"""One model's pods and revisions summed up: what both the conditions and the plan are decided from. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelfleet_api import names
from modelfleet_api.conditions import Reason

from modelfleet_operator.pod_reasons import PodProblem, pod_problem
from modelfleet_operator.rollout import LiveRevision
from modelfleet_operator.state import Manifest, Observed, PodView


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetView:
    """`pods` are those that should serve: not terminating, not ended. `live` are the revisions with a Deployment."""

    pods: tuple[PodView, ...]
    all_pods: tuple[PodView, ...]
    draining: int
    live: tuple[LiveRevision, ...]
    problems: tuple[tuple[str, PodProblem], ...]
    # Revision hashes whose Deployment says that its progress deadline has passed.
    stalled: frozenset[str]

    @property
    def ready(self) -> int:
        """Pods that are ready, which includes routable."""
        return sum(pod.is_ready for pod in self.pods)

    def problems_of(self, revision_hash: str) -> list[PodProblem]:
        """The problems of one revision's pods."""
        return [problem for owner, problem in self.problems if owner == revision_hash]


def fleet_view(observed: Observed) -> FleetView:
    """Sums up the observed pods and Deployments."""
    alive = tuple(pod for pod in observed.pods if not pod.is_terminating)
    serving = tuple(pod for pod in alive if not pod.has_ended)
    problems = []
    for pod in alive:
        problem = pod_problem(pod, mount_failures=observed.mount_failures)
        if problem is not None:
            problems.append((pod.revision_hash, problem))
    deployments = [child for child in observed.children if child["kind"] == "Deployment"]
    for child in deployments:
        refused = _deployment_condition(child, "ReplicaFailure")
        if refused.get("status") == "True":
            problem = PodProblem(reason=Reason.REPLICAS_MISSING, message=str(refused.get("message", "")))
            problems.append((_hash(child), problem))
    return FleetView(
        pods=serving,
        all_pods=observed.pods,
        draining=sum(pod.is_terminating for pod in observed.pods),
        live=tuple(_live(child, pods=serving, children=observed.children) for child in deployments),
        problems=tuple(problems),
        stalled=frozenset(_hash(child) for child in deployments if _is_stalled(child)),
    )


def _hash(manifest: Manifest) -> str:
    return str((manifest["metadata"].get("labels") or {}).get(names.LABEL_REVISION, ""))


def _live(deployment: Manifest, *, pods: Sequence[PodView], children: Sequence[Manifest]) -> LiveRevision:
    revision_hash = _hash(deployment)
    pins = [item for item in children if item["kind"] == "ControllerRevision" and _hash(item) == revision_hash]
    return LiveRevision(
        hash=revision_hash,
        number=pins[0]["revision"] if pins else 0,
        replicas=deployment["spec"].get("replicas", 1),
        ready=sum(pod.is_ready for pod in pods if pod.revision_hash == revision_hash),
    )


def _is_stalled(deployment: Manifest) -> bool:
    """The Deployment controller keeps a progress clock too, also for pods that could not be created at all."""
    return _deployment_condition(deployment, "Progressing").get("reason") == "ProgressDeadlineExceeded"


def _deployment_condition(deployment: Manifest, kind: str) -> Manifest:
    """A condition of a Deployment; empty where it is absent or older than its spec."""
    status = deployment.get("status") or {}
    if status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
        return {}
    return next((item for item in status.get("conditions") or [] if item["type"] == kind), {})
