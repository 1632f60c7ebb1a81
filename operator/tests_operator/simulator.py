"""A small Kubernetes for plans: stores what is applied, runs Deployments, garbage-collects nothing.

It plays the Deployment controller and the kubelet for tests of whole rollouts; which revisions get ready is the
test's choice. The real controllers are in the e2e tests.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from modelfleet_api import names
from modelfleet_operator.plan import decide
from modelfleet_operator.state import Manifest, Observed, OperatorSettings, Plan, PodView, Resource

from tests_operator import builders


@dataclass
class Simulator:
    """One model's world. `gets_ready` says whether pods of a revision's template ever become ready."""

    spec: dict[str, Any]
    gets_ready: Callable[[Manifest], bool] = lambda template: True
    settings: OperatorSettings = builders.SETTINGS
    generation: int = 1
    status: dict[str, Any] = field(default_factory=dict)
    children: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    created: int = 0

    def change(self, spec: Mapping[str, Any]) -> None:
        """The user applies another spec."""
        self.spec = dict(spec)
        self.generation += 1

    def observe(self) -> Observed:
        """What the operator would see now."""
        resource = Resource(
            name="chat",
            namespace="team",
            uid="uid-chat",
            generation=self.generation,
            spec=self.spec,
            status=copy.deepcopy(self.status),
        )
        return Observed(
            resource=resource,
            children=tuple(copy.deepcopy(item) for item in self.children.values()),
            pods=tuple(PodView.from_manifest(item) for item in self.pods.values()),
        )

    def reconcile(self) -> Plan:
        """One pass of the operator, carried out."""
        plan = decide(self.observe(), settings=self.settings, now=builders.NOW)
        for manifest in (*plan.apply_first, *plan.apply):
            key = (manifest["kind"], manifest["metadata"]["name"])
            stored = copy.deepcopy(dict(manifest))
            stored["metadata"] |= {"uid": f"uid-{'-'.join(key)}", "generation": 1}
            self.children[key] = {**self.children.get(key, {}), **stored}
        for reference in plan.delete:
            del self.children[(reference.kind, reference.name)]
        for gate in plan.gates:
            self._set(self.pods[gate.pod_name], names.READINESS_GATE_ROUTABLE, holds=gate.is_routable)
        self.status |= plan.status or {}
        return plan

    def run_controllers(self) -> None:
        """The Deployments create or remove one pod each; started pods get ready where they can."""
        self._update_readiness()
        for (kind, _), deployment in sorted(self.children.items()):
            if kind == "Deployment":
                self._scale(deployment)
        for key in [name for name, item in self.pods.items() if ("Deployment", item["owner"]) not in self.children]:
            del self.pods[key]

    def settle(self, *, check: Callable[[Simulator], None] = lambda _: None, rounds: int = 200) -> int:
        """Alternates operator and controllers until neither changes anything; returns the rounds it took."""
        for count in range(rounds):
            before = self.fingerprint()
            plan = self.reconcile()
            check(self)
            self.run_controllers()
            check(self)
            if plan.is_empty and self.fingerprint() == before:
                return count
        raise AssertionError(f"not settled after {rounds} rounds")

    def fingerprint(self) -> str:
        """Everything that can change."""
        return repr((self.status, self.children, self.pods))

    def ready_count(self) -> int:
        """Pods that serve."""
        return sum(PodView.from_manifest(item).is_ready for item in self.pods.values())

    def wanted_total(self) -> int:
        """Replicas that all Deployments together ask for."""
        return sum(item["spec"]["replicas"] for (kind, _), item in self.children.items() if kind == "Deployment")

    def _scale(self, deployment: dict[str, Any]) -> None:
        name = deployment["metadata"]["name"]
        # ReplicaSets neither count nor remove pods that have ended.
        alive = {key: item for key, item in self.pods.items() if item["status"]["phase"] != "Failed"}
        mine = [key for key, item in alive.items() if item["owner"] == name]
        if len(mine) < deployment["spec"]["replicas"]:
            self.created += 1
            revision = deployment["metadata"]["labels"][names.LABEL_REVISION]
            status = builders.running_status(containers_ready=False, routable=None)
            self.pods[f"pod-{self.created}"] = {
                **builders.pod(f"pod-{self.created}", revision=revision, status=status),
                "owner": name,
            }
        elif len(mine) > deployment["spec"]["replicas"]:
            # ReplicaSets remove unready pods first.
            mine.sort(key=lambda key: PodView.from_manifest(self.pods[key]).is_ready)
            del self.pods[mine[0]]

    def _update_readiness(self) -> None:
        for item in self.pods.values():
            if item["status"]["phase"] == "Failed":
                continue  # The kubelet is done with it.
            deployment = self.children.get(("Deployment", item["owner"]))
            if deployment is not None and self.gets_ready(deployment["spec"]["template"]):
                self._set(item, "ContainersReady", holds=True)
                item["status"]["containerStatuses"][0]["ready"] = True
            gate = self._get(item, names.READINESS_GATE_ROUTABLE)
            self._set(item, "Ready", holds=gate and self._get(item, "ContainersReady"))

    def _get(self, item: dict[str, Any], kind: str) -> bool:
        return any(entry["type"] == kind and entry["status"] == "True" for entry in item["status"]["conditions"])

    def _set(self, item: dict[str, Any], kind: str, *, holds: bool) -> None:
        others = [entry for entry in item["status"]["conditions"] if entry["type"] != kind]
        item["status"]["conditions"] = [*others, builders.condition(kind, str(holds))]
