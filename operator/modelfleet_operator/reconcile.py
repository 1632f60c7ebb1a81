"""One pass over one LLMDeployment, top to bottom: look, decide, write.

Level-triggered: it never asks what has changed. Must not keep anything between passes but `Attempts`.
"""

from __future__ import annotations

from modelfleet_kube.client import Client
from modelfleet_kube.resources import ObjectKey

from modelfleet_operator.apply import Clocks, Writer
from modelfleet_operator.attempts import Attempts
from modelfleet_operator.caches import Caches
from modelfleet_operator.metrics import Metrics
from modelfleet_operator.observe import observe_model
from modelfleet_operator.plan import decide
from modelfleet_operator.settings import Settings
from modelfleet_operator.state import OperatorSettings, Resource
from modelfleet_operator.workers import PassResult


class Reconciler:
    """Makes passes; one per process. Two passes over one key never overlap: the dirty set sees to that."""

    def __init__(self, client: Client, caches: Caches, *, settings: Settings, metrics: Metrics, clocks: Clocks) -> None:
        self._caches = caches
        self._clocks = clocks
        self._writer = Writer(client, caches, metrics=metrics, clocks=clocks, reporter=settings.pod_name)
        self._settings = OperatorSettings(
            engine_image=settings.engine_image,
            engine_gpu_image=settings.engine_gpu_image,
            engine_pull_policy=settings.engine_pull_policy,
        )
        self._attempts: dict[ObjectKey, Attempts] = {}

    async def make_pass(self, key: ObjectKey) -> PassResult:
        """Converges one LLMDeployment as far as it goes now. Raises KubeError for what may work later."""
        manifest = self._caches.models.cache.get(key)
        if manifest is None:
            # Deleted: its children carry owner references, the garbage collector removes them.
            self._attempts.pop(key, None)
            return PassResult()
        attempts = self._attempts_for(key, generation=Resource.from_manifest(manifest).generation)
        observed = observe_model(key, manifest, caches=self._caches, apply_errors=attempts.errors)
        plan = decide(observed, settings=self._settings, now=self._clocks.wall())
        outcome = await self._writer.carry_out(plan, resource=observed.resource, attempts=attempts)
        return PassResult(
            written=outcome.written,
            is_unsettled=outcome.written > 0 or outcome.has_new_errors,
            requeue_after_seconds=_earlier(
                plan.requeue_after_seconds, attempts.next_attempt(now=self._clocks.monotonic())
            ),
        )

    def _attempts_for(self, key: ObjectKey, *, generation: int) -> Attempts:
        attempts = self._attempts.get(key)
        if attempts is None or attempts.generation != generation:
            attempts = self._attempts[key] = Attempts(generation=generation)
        return attempts


def _earlier(first: float | None, second: float | None) -> float | None:
    given = [seconds for seconds in (first, second) if seconds is not None]
    return min(given) if given else None
