"""A namespace in which a test plays the user, and the parts of a cluster that a bare API server lacks.

The Deployment controller, the scheduler and the kubelet: pods are created and their status is written through the
API, as those would. What the operator does is never played.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from modelfleet_api import names
from modelfleet_kube.client import Client
from modelfleet_kube.errors import KubeError, NotFoundError
from modelfleet_kube.resources import DEPLOYMENT, EVENT, POD, ObjectRef, ResourceKind, Selection
from modelfleet_operator.caches import CHILD_KINDS, LLM_DEPLOYMENT

WAIT_SECONDS = 30.0
NOW = "2026-01-01T00:00:00Z"


async def until(condition: Callable[[], Awaitable[Any]], *, seconds: float = WAIT_SECONDS) -> Any:
    """The first true answer of `condition`; KubeErrors count as not yet."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                answer = await condition()
            except KubeError:
                answer = None
            if answer:
                return answer
            await asyncio.sleep(0.01)


class World:
    """One namespace."""

    def __init__(self, client: Client, namespace: str) -> None:
        self.client = client
        self.namespace = namespace

    def ref(self, kind: ResourceKind, name: str) -> ObjectRef:
        """An object of this namespace."""
        return ObjectRef(kind=kind, name=name, namespace=self.namespace)

    async def apply_model(self, name: str, **spec: Any) -> dict[str, Any]:
        """`kubectl apply` of an LLMDeployment."""
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {"model": {"source": "pvc://models/demo"}, **spec},
        }
        return await self.client.apply(self.ref(LLM_DEPLOYMENT, name), body, field_manager="user", force=True)

    async def model(self, name: str) -> dict[str, Any]:
        """The LLMDeployment now."""
        return await self.client.get(self.ref(LLM_DEPLOYMENT, name))

    async def delete_models(self) -> None:
        """Deletes every LLMDeployment of this namespace."""
        for item in (await self.client.list(Selection(kind=LLM_DEPLOYMENT, namespace=self.namespace))).items:
            await self.client.delete(self.ref(LLM_DEPLOYMENT, item["metadata"]["name"]))

    async def condition(self, name: str, condition_type: str) -> dict[str, Any]:
        """A condition of an LLMDeployment; empty where it is absent."""
        conditions = (await self.model(name)).get("status", {}).get("conditions", [])
        return next((item for item in conditions if item["type"] == condition_type), {})

    async def children(self, kind: ResourceKind, name: str) -> list[dict[str, Any]]:
        """The labelled objects of one kind, by name."""
        selection = Selection(kind=kind, namespace=self.namespace, label_selector=f"{names.LABEL_MODEL}={name}")
        return (await self.client.list(selection)).items

    async def all_children(self, name: str) -> list[dict[str, Any]]:
        """The labelled objects of every kind the operator writes, and the pods."""
        return [item for kind in (*CHILD_KINDS, POD) for item in await self.children(kind, name)]

    async def versions(self, name: str) -> dict[str, str]:
        """The resourceVersion of the LLMDeployment and everything below it."""
        items = [await self.model(name), *await self.all_children(name)]
        return {f"{item['kind']}/{item['metadata']['name']}": item["metadata"]["resourceVersion"] for item in items}

    async def wait_children(self, name: str, *, kinds: tuple[ResourceKind, ...] = CHILD_KINDS) -> None:
        """Until one of each kind exists."""
        for kind in kinds:
            await until(lambda kind=kind: self.children(kind, name))  # type: ignore[misc]

    async def make_ready(self, name: str) -> None:
        """Plays the cluster until every Deployment of the model has all its replicas ready."""
        for deployment in await self.children(DEPLOYMENT, name):
            replicas = deployment["spec"].get("replicas", 1)
            for index in range(replicas):
                await self._start_pod(deployment, index=index)
            for index in range(replicas):
                await self._finish_pod(f"{deployment['metadata']['name']}-{index}")
            counts = {"replicas": replicas, "readyReplicas": replicas, "updatedReplicas": replicas}
            await self.set_deployment_status(deployment, **counts, availableReplicas=replicas)

    async def set_deployment_status(self, deployment: dict[str, Any], **counts: int) -> None:
        """What the Deployment controller writes."""
        status = {**counts, "observedGeneration": deployment["metadata"]["generation"]}
        ref = self.ref(DEPLOYMENT, deployment["metadata"]["name"])
        await self.client.merge_patch(ref, {"status": status}, subresource="status")

    async def set_pod_status(self, pod_name: str, **status: Any) -> None:
        """What scheduler and kubelet write; conditions merge by type."""
        await self.client.strategic_patch(self.ref(POD, pod_name), {"status": status}, subresource="status")

    async def create_pod(self, deployment: dict[str, Any], *, index: int) -> dict[str, Any]:
        """What the ReplicaSet controller creates, and the scheduler binds."""
        template = deployment["spec"]["template"]
        name = f"{deployment['metadata']['name']}-{index}"
        metadata = {**template["metadata"], "name": name, "namespace": self.namespace}
        return await self.client.create(POD, {"metadata": metadata, "spec": {**template["spec"], "nodeName": "node-0"}})

    async def tell_mount_failure(self, pod: dict[str, Any], *, message: str) -> None:
        """The kubelet's event about a volume."""
        involved = {key: pod["metadata"][key] for key in ("name", "namespace", "uid")}
        event = {
            "metadata": {"generateName": "pod.", "namespace": self.namespace},
            "involvedObject": {"apiVersion": "v1", "kind": "Pod", **involved},
            "reason": "FailedMount",
            "message": message,
            "type": "Warning",
            "firstTimestamp": NOW,
            "lastTimestamp": NOW,
        }
        await self.client.create(EVENT, event)

    async def _start_pod(self, deployment: dict[str, Any], *, index: int) -> None:
        name = f"{deployment['metadata']['name']}-{index}"
        try:
            await self.client.get(self.ref(POD, name))
        except NotFoundError:
            await self.create_pod(deployment, index=index)
        container = {"name": names.ENGINE_CONTAINER, "ready": True, "started": True, "restartCount": 0}
        container |= {"image": "i", "imageID": "i", "state": {"running": {"startedAt": NOW}}}
        true = {"status": "True", "lastTransitionTime": NOW}
        conditions = [{"type": kind, **true} for kind in ("PodScheduled", "Initialized", "ContainersReady")]
        await self.set_pod_status(name, phase="Running", conditions=conditions, containerStatuses=[container])

    async def _finish_pod(self, name: str) -> None:
        """The kubelet calls a pod ready once the operator has set the readiness gate."""

        async def is_routable() -> bool:
            pod = await self.client.get(self.ref(POD, name))
            conditions = {item["type"]: item["status"] for item in pod["status"].get("conditions", [])}
            return conditions.get(names.READINESS_GATE_ROUTABLE) == "True"

        await until(is_routable)
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": NOW}
        await self.set_pod_status(name, conditions=[ready])
