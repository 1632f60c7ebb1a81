"""The readiness gate `modelfleet.dev/routable` of each pod, as long as no gateway decides it. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from modelfleet_operator.state import Observed, PodGate, PodView

# From a pod's gate to a Service that answers: the kubelet's Ready, the EndpointSlice, and kube-proxy's next round
# (its minimum is 1 s). Until then a connection is refused on some node.
SERVICE_SETTLE_SECONDS = 3.0


def decide_gates(observed: Observed) -> tuple[PodGate, ...]:
    """Without a gateway a pod is routable as soon as its containers are ready, and anew after a restart."""
    gates = []
    for pod in observed.pods:
        if pod.is_terminating or pod.has_ended:
            continue
        if pod.has_containers_ready and pod.is_routable is not True:
            gates.append(PodGate(pod_name=pod.name, pod_uid=pod.uid, is_routable=True, reason="ContainersReady"))
        elif not pod.has_containers_ready and pod.is_routable is True:
            gates.append(PodGate(pod_name=pod.name, pod_uid=pod.uid, is_routable=False, reason="ContainersNotReady"))
    return tuple(gates)


def settling_seconds(pods: Sequence[PodView], *, now: datetime) -> float | None:
    """How long until the Service can be trusted to know a ready pod; None where it does, or where none is ready.

    A gate dated in the future (another replica's clock) counts as known.
    """
    ages = []
    for pod in pods:
        if not pod.is_ready:
            continue
        if not pod.gate_changed:
            return None
        age = (now - datetime.fromisoformat(pod.gate_changed)).total_seconds()
        if not 0 <= age < SERVICE_SETTLE_SECONDS:
            return None
        ages.append(age)
    return SERVICE_SETTLE_SECONDS - max(ages) if ages else None
