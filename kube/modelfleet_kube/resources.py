"""How objects are addressed: kinds, references to one object, and selections of many.

PURE. Must not know the product: the built-in kinds below are Kubernetes' own, in the versions of 1.34.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

Manifest = Mapping[str, Any]


class ObjectKey(NamedTuple):
    """Namespace and name; the namespace is empty for cluster-scoped objects."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceKind:
    """One served kind. `group` is empty for the core API."""

    group: str
    version: str
    plural: str
    kind: str
    is_namespaced: bool = True

    @property
    def api_version(self) -> str:
        """`group/version`, or the bare version of the core API."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, *, namespace: str = "") -> str:
        """The collection's URL path; without a namespace, the one across all namespaces."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        scope = f"/namespaces/{namespace}" if namespace and self.is_namespaced else ""
        return f"{root}{scope}/{self.plural}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRef:
    """Names one object of one kind."""

    kind: ResourceKind
    name: str
    namespace: str = ""

    @property
    def path(self) -> str:
        """The object's URL path."""
        return f"{self.kind.path(namespace=self.namespace)}/{self.name}"

    @property
    def key(self) -> ObjectKey:
        """Where caches keep it."""
        return ObjectKey(self.namespace, self.name)

    def __str__(self) -> str:
        return f"{self.kind.kind} {self.key}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The objects of one kind that list and watch ask for; both selectors are evaluated by the API server."""

    kind: ResourceKind
    namespace: str = ""
    label_selector: str = ""
    field_selector: str = ""

    def query(self) -> dict[str, str]:
        """The selectors as URL parameters."""
        query = {"labelSelector": self.label_selector, "fieldSelector": self.field_selector}
        return {name: value for name, value in query.items() if value}


def key_of(manifest: Manifest) -> ObjectKey:
    """The key of a manifest that has `metadata.name`."""
    metadata = manifest["metadata"]
    return ObjectKey(metadata.get("namespace", ""), metadata["name"])


def resource_version_of(manifest: Manifest) -> int:
    """`metadata.resourceVersion` as a number, 0 where absent: newer is larger within one kind (KEP-5504)."""
    version = manifest.get("metadata", {}).get("resourceVersion") or "0"
    return int(version)


POD = ResourceKind(group="", version="v1", plural="pods", kind="Pod")
SERVICE = ResourceKind(group="", version="v1", plural="services", kind="Service")
SERVICE_ACCOUNT = ResourceKind(group="", version="v1", plural="serviceaccounts", kind="ServiceAccount")
CONFIG_MAP = ResourceKind(group="", version="v1", plural="configmaps", kind="ConfigMap")
EVENT = ResourceKind(group="", version="v1", plural="events", kind="Event")
NAMESPACE = ResourceKind(group="", version="v1", plural="namespaces", kind="Namespace", is_namespaced=False)
DEPLOYMENT = ResourceKind(group="apps", version="v1", plural="deployments", kind="Deployment")
CONTROLLER_REVISION = ResourceKind(group="apps", version="v1", plural="controllerrevisions", kind="ControllerRevision")
POD_DISRUPTION_BUDGET = ResourceKind(
    group="policy", version="v1", plural="poddisruptionbudgets", kind="PodDisruptionBudget"
)
LEASE = ResourceKind(group="coordination.k8s.io", version="v1", plural="leases", kind="Lease")
