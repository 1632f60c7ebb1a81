"""What the gateway knows of the fleet: models, their engines, routes. PURE frozen types, whoever fills them.

A snapshot comes from a file (`--config`) or from watches of the cluster; everything else takes it as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Strategy(StrEnum):
    """`routing.strategy` of an LLMDeployment."""

    AUTO = "Auto"
    PREFIX_AWARE = "PrefixAware"
    LEAST_LOAD = "LeastLoad"
    SESSION = "Session"
    ROUND_ROBIN = "RoundRobin"


@dataclass(frozen=True, slots=True, order=True)
class ModelId:
    """One LLMDeployment. Its canonical id `<name>.<namespace>` always works in requests."""

    namespace: str
    name: str

    @property
    def canonical(self) -> str:
        """As requests name it."""
        return f"{self.name}.{self.namespace}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldPolicy:
    """`routing.hold`: how many requests wait for a model without room, and how long each."""

    max_requests: int = 1000
    timeout_seconds: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model as requests see it."""

    id: ModelId
    served_name: str
    # Seconds since 1970 that it exists: of two models that serve one name the older has it.
    created_at: float = 0.0
    strategy: Strategy = Strategy.AUTO
    session_header: str | None = None
    hold: HoldPolicy = field(default_factory=HoldPolicy)
    # Suspended: no pods and nothing is held.
    is_suspended: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One engine of a model. `uid` is the pod's, or any stable name of a static endpoint."""

    uid: str
    model: ModelId
    base_url: str  # http://address:port, no path
    revision: str = ""
    # Marked by the operator: what it has is finished, nothing new is sent.
    is_draining: bool = False
    # Grows with each restart of the container: what it had cached is gone.
    restarts: int = 0
    # Compute of a replica relative to the others of its model (another GPU, another size), 1.0 by default.
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteTarget:
    """One destination of a route and its share."""

    model: ModelId
    weight: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A `ModelRoute`: a name (or a header's value) that stands for one model or a weighted split."""

    aliases: tuple[str, ...]
    targets: tuple[RouteTarget, ...]
    # Only requests that carry all of these headers (names in lower case); empty: every request.
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """One consistent snapshot."""

    models: Mapping[ModelId, Model] = field(default_factory=dict)
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)  # by uid
    routes: tuple[Route, ...] = ()

    def endpoints_of(self, model: ModelId) -> tuple[Endpoint, ...]:
        """In the order of their uids."""
        return tuple(sorted((e for e in self.endpoints.values() if e.model == model), key=lambda e: e.uid))
