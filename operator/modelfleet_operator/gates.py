"""The readiness gate `modelfleet.dev/routable` of each pod, as long as no gateway decides it. PURE."""

from __future__ import annotations

from modelfleet_operator.state import Observed, PodGate


def decide_gates(observed: Observed) -> tuple[PodGate, ...]:
    """Without a gateway a pod is routable as soon as its containers are ready, and anew after a restart."""
    gates = []
    for pod in observed.pods:
        if pod.is_terminating or pod.phase in ("Failed", "Succeeded"):
            continue
        if pod.has_containers_ready and pod.is_routable is not True:
            gates.append(PodGate(pod_name=pod.name, pod_uid=pod.uid, is_routable=True, reason="ContainersReady"))
        elif not pod.has_containers_ready and pod.is_routable is True:
            gates.append(PodGate(pod_name=pod.name, pod_uid=pod.uid, is_routable=False, reason="ContainersNotReady"))
    return tuple(gates)
