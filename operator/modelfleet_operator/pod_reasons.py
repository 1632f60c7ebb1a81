"""What one pod suffers from, as a condition reason and a sentence a person can act on. PURE.

The order of the checks is the order in which a pod comes to life, so the first trouble met is the cause.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelfleet_api import names
from modelfleet_api.conditions import Reason

from modelfleet_operator.state import ContainerView, MountFailure, PodView, Terminated

# Exit codes of the engine and the fetch container (modelfleet_engine.errors).
EXIT_BAD_MODEL = 3
EXIT_OUT_OF_MEMORY = 4

_IMAGE_PULL = frozenset({"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "RegistryUnavailable"})
_CREATE = frozenset({"CreateContainerError", "CreateContainerConfigError", "RunContainerError"})

# The more telling a reason, the earlier: the worst one of all pods is shown.
SEVERITY = (
    Reason.INVALID_IMAGE,
    Reason.IMAGE_PULL,
    Reason.CREATE_CONTAINER,
    Reason.MODEL_NOT_FOUND,
    Reason.MODEL_DOWNLOAD_FAILED,
    Reason.OUT_OF_MEMORY,
    Reason.CRASH_LOOP,
    Reason.ENGINE_EXITED,
    Reason.VOLUME_NOT_MOUNTED,
    Reason.REPLICAS_MISSING,
    Reason.UNSCHEDULABLE,
    Reason.EVICTED,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodProblem:
    """Why a pod does not serve, or is not there at all. `message` names the pod where there is one."""

    reason: Reason
    message: str


def worst(problems: list[PodProblem]) -> PodProblem | None:
    """The most telling problem, None where there is none."""
    ranked = sorted(problems, key=lambda problem: (SEVERITY.index(problem.reason), problem.message))
    return ranked[0] if ranked else None


def pod_problem(pod: PodView, *, mount_failures: tuple[MountFailure, ...]) -> PodProblem | None:
    """What keeps this pod from serving; None while it serves, goes, or simply starts."""
    if pod.is_terminating or pod.is_ready:
        return None
    if pod.reason == "Evicted" or (pod.phase == "Failed" and not pod.containers):
        return _problem(pod, Reason.EVICTED, pod.message or pod.reason or "the pod failed")
    if pod.unschedulable_message is not None:
        return _problem(pod, Reason.UNSCHEDULABLE, pod.unschedulable_message)
    for container in (*pod.init_containers, *pod.containers):
        problem = _container_problem(pod, container)
        if problem is not None:
            return problem
    return _mount_problem(pod, mount_failures)


def _mount_problem(pod: PodView, failures: tuple[MountFailure, ...]) -> PodProblem | None:
    """A FailedMount event counts until the volumes are there: events stay after the cause is gone."""
    if pod.has_sandbox or any(
        item.is_running or item.terminated or item.restart_count for item in (*pod.init_containers, *pod.containers)
    ):
        return None
    for failure in failures:
        if failure.pod_uid == pod.uid:
            return _problem(pod, Reason.VOLUME_NOT_MOUNTED, failure.message)
    return None


def _container_problem(pod: PodView, container: ContainerView) -> PodProblem | None:
    waiting = container.waiting_reason
    if waiting == "InvalidImageName":
        return _problem(pod, Reason.INVALID_IMAGE, container.waiting_message)
    if waiting in _IMAGE_PULL:
        return _problem(pod, Reason.IMAGE_PULL, container.waiting_message or waiting)
    if waiting in _CREATE:
        return _problem(pod, Reason.CREATE_CONTAINER, container.waiting_message or waiting)
    ended = container.terminated or container.last_terminated
    is_done_init = container.terminated is not None and container.terminated.exit_code == 0
    if ended is None or is_done_init or container.is_ready:
        return None
    return _end_problem(pod, container, ended=ended)


def _end_problem(pod: PodView, container: ContainerView, *, ended: Terminated) -> PodProblem | None:
    """A container that ended and is not (yet) ready again."""
    line = last_line(ended.message)
    if ended.reason == "OOMKilled" or ended.exit_code == EXIT_OUT_OF_MEMORY:
        # The last line of a log says nothing about a kill; the engine's own exit does.
        told = line if ended.exit_code == EXIT_OUT_OF_MEMORY and line else "more than resources.limits.memory allows"
        return _problem(pod, Reason.OUT_OF_MEMORY, f"out of memory: {told}")
    if container.name == names.FETCH_CONTAINER:
        reason = Reason.MODEL_NOT_FOUND if ended.exit_code == EXIT_BAD_MODEL else Reason.MODEL_DOWNLOAD_FAILED
        return _problem(pod, reason, line or f"the download ended with exit code {ended.exit_code}")
    if ended.exit_code == EXIT_BAD_MODEL:
        return _problem(pod, Reason.MODEL_NOT_FOUND, line or "the engine refused the model")
    told = _exit_words(ended, line=line)
    # Between two back-offs the container runs for a moment: still the same loop, and no new event each time.
    if container.waiting_reason == "CrashLoopBackOff" or container.restart_count > 1:
        return _problem(pod, Reason.CRASH_LOOP, told)
    if ended.exit_code == 0:
        return None
    return _problem(pod, Reason.ENGINE_EXITED, told)


def _exit_words(ended: Terminated, *, line: str) -> str:
    """The engine's last line where it ended by itself; a killed one did not choose its last line."""
    if ended.exit_code > 128:
        words = f"the engine was killed by signal {ended.exit_code - 128} and is restarted"
        return f"{words}; its last line: {line}" if line else words
    return line or f"the engine ended with exit code {ended.exit_code} and is restarted"


def last_line(text: str) -> str:
    """The last line that says something: the engine ends with its reason."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:512] if lines else ""


def _problem(pod: PodView, reason: Reason, message: str) -> PodProblem:
    return PodProblem(reason=reason, message=f"pod {pod.name}: {message.strip()}")
