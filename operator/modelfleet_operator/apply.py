"""The only writer: carries out a plan by server-side apply, deletes with preconditions, gates, status and events.

What the API server refuses is remembered and handed to the next pass; what may work later is raised.
Must not decide what to write, and must not take over an object that is not ours.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from modelfleet_api import names
from modelfleet_kube.client import Client
from modelfleet_kube.errors import ConflictError, ErrorKind, InvalidError, KubeError, NotFoundError
from modelfleet_kube.resources import POD, POD_DISRUPTION_BUDGET, ObjectRef

from modelfleet_operator.attempts import Attempts, child_key
from modelfleet_operator.caches import CHILD_KINDS, LLM_DEPLOYMENT, Caches
from modelfleet_operator.events import event_manifest, write_event
from modelfleet_operator.metrics import Metrics
from modelfleet_operator.state import ApplyError, Manifest, ObjectReference, Plan, PodGate, Resource, rfc3339

logger = logging.getLogger(__name__)

KINDS = {(kind.api_version, kind.kind): kind for kind in (*CHILD_KINDS, POD)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """Monotonic seconds for delays, aware UTC time for what is written."""

    monotonic: Callable[[], float]
    wall: Callable[[], datetime]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How much was written, and whether the API server refused something that it had not refused before."""

    written: int
    has_new_errors: bool


class Writer:
    """Writes for one process; `reporter` is its name in events."""

    def __init__(self, client: Client, caches: Caches, *, metrics: Metrics, clocks: Clocks, reporter: str) -> None:
        self._client = client
        self._caches = caches
        self._metrics = metrics
        self._clocks = clocks
        self._reporter = reporter

    async def carry_out(self, plan: Plan, *, resource: Resource, attempts: Attempts) -> Outcome:
        """Everything of `plan` that can be done. Raises the first error of a step only after all the other steps."""
        errors_before = attempts.errors
        attempts.keep_only({child_key(manifest) for manifest in (*plan.apply_first, *plan.apply)})
        failures: list[KubeError] = []
        written = 0
        # Gates come first: whether a pod serves must not wait for a child that cannot be written now.
        for step in (self._set_gates, self._apply_all, self._delete_all):
            try:
                written += await step(plan, resource=resource, attempts=attempts)
            except KubeError as error:
                failures.append(error)
        # After a write another pass follows at once and sees what it did: one status instead of two.
        if written == 0:
            written += await self._report(plan, resource=resource)
        if failures:
            raise failures[0]
        return Outcome(written=written, has_new_errors=attempts.errors != errors_before)

    async def _set_gates(self, plan: Plan, *, resource: Resource, attempts: Attempts) -> int:
        return await self._all([self._set_gate(gate, resource=resource) for gate in plan.gates])

    async def _apply_all(self, plan: Plan, *, resource: Resource, attempts: Attempts) -> int:
        written = 0
        for manifest in plan.apply_first:
            written += await self._apply_children([manifest], resource=resource, attempts=attempts)
        # What comes first (the service account) is needed by the rest.
        refused = {(error.kind, error.name) for error in attempts.errors}
        if not any(child_key(manifest) in refused for manifest in plan.apply_first):
            written += await self._apply_children(plan.apply, resource=resource, attempts=attempts)
        return written

    async def _delete_all(self, plan: Plan, *, resource: Resource, attempts: Attempts) -> int:
        return await self._all([self._delete(reference) for reference in plan.delete])

    async def _report(self, plan: Plan, *, resource: Resource) -> int:
        """Status first: an event tells of a change that is written."""
        written = await self._write_status(plan.status, resource=resource) if plan.status is not None else 0
        for event in plan.events:
            manifest = event_manifest(event, resource=resource, reporter=self._reporter, now=self._clocks.wall())
            written += await write_event(self._client, manifest, metrics=self._metrics)
        return written

    async def _apply_children(self, manifests: Sequence[Manifest], *, resource: Resource, attempts: Attempts) -> int:
        now = self._clocks.monotonic()
        due = [manifest for manifest in manifests if attempts.may_write(manifest, now=now)]
        return await self._all([self._apply(each, resource=resource, attempts=attempts) for each in due])

    async def _all(self, writes: Sequence[Coroutine[Any, Any, int]]) -> int:
        """Runs them together; returns how many wrote. All are finished before the first error is raised."""
        written = 0
        errors = []
        for result in await asyncio.gather(*writes, return_exceptions=True):
            if isinstance(result, BaseException):
                errors.append(result)
            else:
                written += result
        if errors:
            raise errors[0]
        return written

    async def _apply(self, manifest: Manifest, *, resource: Resource, attempts: Attempts) -> int:
        """1 where the child was written, 0 where it was refused (and remembered)."""
        kind = KINDS[(manifest["apiVersion"], manifest["kind"])]
        ref = ObjectRef(kind=kind, name=manifest["metadata"]["name"], namespace=resource.namespace)
        try:
            stranger = await self._stranger(ref, resource=resource)
            if stranger is not None:
                attempts.record_error(manifest, stranger, now=self._clocks.monotonic())
                return 0
            self._caches.put(kind, await self._server_side_apply(ref, manifest))
        except KubeError as error:
            if error.kind is not ErrorKind.USER:
                raise
            refusal = ApplyError(kind=kind.kind, name=ref.name, status_code=error.code, message=error.message)
            attempts.record_error(manifest, refusal, now=self._clocks.monotonic())
            logger.warning("the API server refuses %s: %s", ref, error)
            return 0
        attempts.record_success(manifest, now=self._clocks.monotonic())
        return 1

    async def _stranger(self, ref: ObjectRef, *, resource: Resource) -> ApplyError | None:
        """Why an object of that name must not be touched; None where it is ours, an orphan of ours, or absent.

        One read per created child: caches hold labelled objects only, and a forced apply would take anything over.
        Raises ConflictError while the child of an earlier object of our name waits for the garbage collector.
        """
        known = self._caches.children[ref.kind].cache.get(ref.key)
        if known is None:
            try:
                known = await self._client.get(ref)
            except NotFoundError:
                return None
        owners = known["metadata"].get("ownerReferences") or []
        if any(owner.get("uid") == resource.uid for owner in owners):
            return None
        is_labelled = (known["metadata"].get("labels") or {}).get(names.LABEL_MODEL) == resource.name
        if is_labelled and not owners:
            return None  # Left behind by a deletion with --cascade=orphan.
        message = f"{ref.kind.kind} {ref.name} exists and does not belong to this {names.KIND}"
        if is_labelled and any(owner.get("kind") == names.KIND for owner in owners):
            raise ConflictError(f"{message}, but to an earlier one of its name", code=409)
        return ApplyError(kind=ref.kind.kind, name=ref.name, status_code=409, message=message)

    async def _server_side_apply(self, ref: ObjectRef, manifest: Manifest) -> dict[str, Any]:
        try:
            return await self._client.apply(ref, manifest, field_manager=names.FIELD_MANAGER, force=True)
        except InvalidError:
            if ref.kind != POD_DISRUPTION_BUDGET or self._caches.children[ref.kind].cache.get(ref.key) is None:
                raise
            # Its two limits exclude each other, and a forced apply does not remove the one that others set.
            await self._client.merge_patch(ref, {"spec": {"minAvailable": None, "maxUnavailable": None}})
            return await self._client.apply(ref, manifest, field_manager=names.FIELD_MANAGER, force=True)

    async def _delete(self, reference: ObjectReference) -> int:
        kind = KINDS[(reference.api_version, reference.kind)]
        ref = ObjectRef(kind=kind, name=reference.name, namespace=reference.namespace)
        try:
            left = await self._client.delete(ref, uid=reference.uid)
        except (NotFoundError, ConflictError):
            return 0  # Gone, or already another one of that name: the watch tells.
        if left is not None:
            self._caches.put(kind, left)  # A finalizer holds it: it must not be deleted again and again.
        return 1

    async def _set_gate(self, gate: PodGate, *, resource: Resource) -> int:
        condition = {
            "type": names.READINESS_GATE_ROUTABLE,
            "status": "True" if gate.is_routable else "False",
            "reason": gate.reason,
            "lastTransitionTime": rfc3339(self._clocks.wall()),
        }
        # The uid is a precondition; conditions merge by type, so that the kubelet's stay.
        patch = {"metadata": {"uid": gate.pod_uid}, "status": {"conditions": [condition]}}
        ref = ObjectRef(kind=POD, name=gate.pod_name, namespace=resource.namespace)
        return await self._patch_status(ref, patch, patch_with=self._client.strategic_patch)

    async def _write_status(self, status: Manifest, *, resource: Resource) -> int:
        patch = {"metadata": {"uid": resource.uid}, "status": status}
        ref = ObjectRef(kind=LLM_DEPLOYMENT, name=resource.name, namespace=resource.namespace)
        return await self._patch_status(ref, patch, patch_with=self._client.merge_patch)

    async def _patch_status(self, ref: ObjectRef, patch: Manifest, *, patch_with: Callable[..., Any]) -> int:
        try:
            self._caches.put(ref.kind, await patch_with(ref, patch, subresource="status"))
        except NotFoundError:
            return 0  # It was deleted meanwhile; the watch tells.
        return 1
