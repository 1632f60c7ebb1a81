"""Each kind with its samples, its parser, and where the API server has its objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from modelfleet_api import names
from modelfleet_api.crd_kinds import LLM_DEPLOYMENT, MODEL_ROUTE, TENANT, Kind
from modelfleet_api.llmdeployment import parse_manifest
from modelfleet_api.modelroute import parse_route
from modelfleet_api.tenant import parse_tenant

from tests_api import samples_model, samples_pods, samples_route, samples_tenant
from tests_api.samples import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedKind:
    """A kind and the two judges of its manifests."""

    kind: Kind
    parse: Callable[[Mapping[str, Any]], object]
    samples: tuple[Sample, ...]

    @property
    def collection(self) -> str:
        """The path of its objects, of the namespace `default` where it has namespaces."""
        return collection_of(self.kind)


def collection_of(kind: Kind) -> str:
    """The path of a kind's objects, of the namespace `default` where it has namespaces."""
    place = "namespaces/default/" if kind.is_namespaced else ""
    return f"/apis/{names.API_VERSION}/{place}{kind.plural}"


JUDGED: tuple[JudgedKind, ...] = (
    JudgedKind(kind=LLM_DEPLOYMENT, parse=parse_manifest, samples=(*samples_model.SAMPLES, *samples_pods.SAMPLES)),
    JudgedKind(kind=MODEL_ROUTE, parse=parse_route, samples=samples_route.SAMPLES),
    JudgedKind(kind=TENANT, parse=parse_tenant, samples=samples_tenant.SAMPLES),
)
