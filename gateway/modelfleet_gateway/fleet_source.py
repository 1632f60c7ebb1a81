"""Where the gateway's picture of the world comes from: a small interface, and its implementation over a file.

A source hands out whole snapshots; whoever uses them compares and adapts. The watches of a cluster are another source.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from modelfleet_gateway.config import GatewayConfig, LimitsConfig, ModelConfig, read_config
from modelfleet_gateway.errors import ConfigError
from modelfleet_gateway.fleet import Endpoint, Fleet, HoldPolicy, Model, ModelId, Route, RouteTarget
from modelfleet_gateway.logs import log_event
from modelfleet_gateway.quota import Limits

ANONYMOUS = "anonymous"
# How often the file is looked at; SIGHUP makes it at once.
POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSpec:
    """One tenant as configured. `key_digests` are SHA-256 of its keys."""

    name: str
    limits: Limits
    key_digests: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything that may change while the gateway runs. `anonymous`: who asks without a key, if anybody may."""

    fleet: Fleet = field(default_factory=Fleet)
    tenants: tuple[TenantSpec, ...] = ()
    anonymous: TenantSpec | None = None


class FleetSource(Protocol):
    """Snapshots and news of them."""

    @property
    def current(self) -> Snapshot:
        """The newest one."""

    def subscribe(self, callback: Callable[[Snapshot], None]) -> None:
        """Calls back with each later snapshot, on the event loop."""

    async def run(self) -> None:
        """Watches until cancelled."""


class FileSource:
    """The configuration file: read again when it is another one, or by `reload`. A wrong one changes nothing."""

    def __init__(self, path: Path, config: GatewayConfig) -> None:
        self._path = path
        self._signature = _signature(path)
        self._callbacks: list[Callable[[Snapshot], None]] = []
        self._current = build_snapshot(config)

    @property
    def current(self) -> Snapshot:
        """The newest snapshot that was valid."""
        return self._current

    def subscribe(self, callback: Callable[[Snapshot], None]) -> None:
        """Calls back with each later snapshot."""
        self._callbacks.append(callback)

    def reload(self) -> bool:
        """Reads the file; True if it was valid. What needs a restart (addresses, timeouts) stays as it is."""
        self._signature = _signature(self._path)
        try:
            snapshot = build_snapshot(read_config(self._path))
        except ConfigError as error:
            log_event("config_refused", error=str(error))
            return False
        if snapshot != self._current:
            self._current = snapshot
            log_event("config_loaded", models=len(snapshot.fleet.models), endpoints=len(snapshot.fleet.endpoints))
            for callback in self._callbacks:
                callback(snapshot)
        return True

    async def run(self) -> None:
        """Looks at the file's metadata once a second: it works on every file system and over renames."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if _signature(self._path) != self._signature:
                self.reload()


def build_snapshot(config: GatewayConfig) -> Snapshot:
    """The file's models, engines, routes and tenants as the gateway's own types."""
    models = {model_id(model): _model(model) for model in config.models}
    endpoints = {endpoint.uid: endpoint for model in config.models for endpoint in _endpoints(model)}
    routes = tuple(
        Route(
            aliases=route.aliases,
            targets=tuple(
                RouteTarget(model=ModelId(namespace=target.namespace, name=target.model), weight=target.weight)
                for target in route.targets
            ),
            headers=route.headers,
        )
        for route in config.routes
    )
    return Snapshot(
        fleet=Fleet(models=models, endpoints=endpoints, routes=routes),
        tenants=tuple(
            TenantSpec(
                name=tenant.name,
                limits=_limits(tenant),
                key_digests=tuple(bytes.fromhex(key) for key in tenant.key_hashes),
            )
            for tenant in config.tenants
        ),
        anonymous=None if config.anonymous is None else TenantSpec(name=ANONYMOUS, limits=_limits(config.anonymous)),
    )


def model_id(model: ModelConfig) -> ModelId:
    """The model's identity."""
    return ModelId(namespace=model.namespace, name=model.name)


def _model(model: ModelConfig) -> Model:
    return Model(
        id=model_id(model),
        served_name=model.served_name or model.name,
        strategy=model.strategy,
        session_header=model.session_header,
        hold=HoldPolicy(max_requests=model.hold.max_requests, timeout_seconds=model.hold.timeout_seconds),
    )


def _endpoints(model: ModelConfig) -> list[Endpoint]:
    return [
        Endpoint(
            # The address is as good a name as any, but two models may share one.
            uid=endpoint.uid or f"{model_id(model).canonical}@{endpoint.url.removeprefix('http://')}",
            model=model_id(model),
            base_url=endpoint.url,
            weight=endpoint.weight,
        )
        for endpoint in model.endpoints
    ]


def _limits(limits: LimitsConfig) -> Limits:
    return Limits(
        requests_per_minute=limits.requests_per_minute,
        tokens_per_minute=limits.tokens_per_minute,
        tokens_per_day=limits.tokens_per_day,
        max_concurrent=limits.max_concurrent,
        priority=limits.priority,
        weight=limits.weight,
        salt=limits.salt,
        allowed_models=None if limits.allowed_models is None else frozenset(limits.allowed_models),
    )


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size)
