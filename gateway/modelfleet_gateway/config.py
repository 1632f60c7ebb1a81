"""The configuration file of a gateway: what it listens on, models and engines, tenants, routes, limits.

Everything has a default but the models. The file is YAML in camelCase; a mistake is told with the field's path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from modelfleet_api.base import ApiModel
from modelfleet_api.names import MAX_NAME_LENGTH, NAME_PATTERN
from pydantic import Field, ValidationError, model_validator

from modelfleet_gateway.errors import ConfigError
from modelfleet_gateway.fleet import Strategy

# `strict=False` below: YAML knows lists and strings, which become tuples and enums.
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=MAX_NAME_LENGTH)]
Namespace = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
HeaderName = Annotated[str, Field(pattern=r"^[a-z0-9][-a-z0-9_]*$", max_length=128)]
Listen = Annotated[str, Field(pattern=r"^\S*:[0-9]{1,5}$", max_length=256)]
Count = Annotated[int, Field(ge=1, le=2**53)]


class EndpointConfig(ApiModel):
    """One engine. `url` is http://address:port without a path."""

    url: str = Field(pattern=r"^http://[^/\s]+$", max_length=512)
    uid: str | None = Field(default=None, pattern=r"^[!-~]{1,128}$")
    weight: float = Field(default=1.0, gt=0, le=1000)


class HoldConfig(ApiModel):
    """How many requests wait for a model without room, and how long each."""

    max_requests: int = Field(default=1000, ge=0, le=1_000_000)
    timeout_seconds: Seconds = 300.0


class ModelConfig(ApiModel):
    """One model and its engines."""

    name: Name
    namespace: Namespace = "default"
    served_name: str | None = Field(default=None, min_length=1, max_length=200)
    strategy: Strategy = Field(default=Strategy.AUTO, strict=False)
    session_header: HeaderName | None = None
    hold: HoldConfig = Field(default_factory=HoldConfig)
    endpoints: tuple[EndpointConfig, ...] = Field(strict=False, default=(), max_length=1024)


class TargetConfig(ApiModel):
    """One destination of a route and its share."""

    model: Name
    namespace: Namespace = "default"
    weight: int = Field(default=1, ge=0, le=1_000_000)


class RouteConfig(ApiModel):
    """A name that stands for a model or a weighted split, for requests with all of `headers`."""

    aliases: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(
        strict=False, min_length=1, max_length=64
    )
    targets: tuple[TargetConfig, ...] = Field(strict=False, min_length=1, max_length=64)
    headers: dict[HeaderName, Annotated[str, Field(max_length=1024)]] = Field(default_factory=dict, max_length=16)

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        if not any(target.weight for target in self.targets):
            raise ValueError("at least one target needs a weight above 0")
        return self


class LimitsConfig(ApiModel):
    """What one tenant may use; an absent limit is none. Lower priority numbers go first."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    tokens_per_day: Count | None = None
    max_concurrent: Count | None = None
    priority: int = Field(default=0, ge=-(2**31) + 1, le=2**31 - 1)
    weight: int = Field(default=1, ge=1, le=10_000)
    salt: str = Field(default="", pattern=r"^[!-~]{0,256}$")
    allowed_models: tuple[Annotated[str, Field(max_length=200)], ...] | None = Field(
        strict=False, default=None, max_length=1024
    )


class TenantConfig(LimitsConfig):
    """Who may ask. `key_hashes` are SHA-256 of the keys, in hexadecimal: the keys themselves are nowhere."""

    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=63)
    key_hashes: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...] = Field(
        strict=False, min_length=1, max_length=64
    )


class InternalConfig(ApiModel):
    """The listener of `/metrics` and `/internal/*`, and the file with the key shared with engines and operator."""

    listen: Listen = "127.0.0.1:8081"
    key_file: str | None = None


class TimeoutsConfig(ApiModel):
    """Of a client's head and body, and of an engine's answer."""

    header_seconds: Seconds = 15.0
    body_seconds: Seconds = 60.0
    keep_alive_seconds: Seconds = 620.0
    connect_seconds: Seconds = 3.0
    first_byte_seconds: Seconds = 600.0
    idle_seconds: Seconds = 120.0
    total_seconds: Seconds = 3600.0


class BoundsConfig(ApiModel):
    """What a request may be at most."""

    body_bytes: int = Field(default=32 * 1024 * 1024, ge=1, le=2**31)
    header_bytes: int = Field(default=16 * 1024, ge=256, le=1024 * 1024)
    headers: int = Field(default=100, ge=8, le=1000)


class DrainConfig(ApiModel):
    """After SIGTERM: how long new requests still come in, then how long what runs may take."""

    accept_seconds: float = Field(default=5.0, ge=0, le=600)
    timeout_seconds: float = Field(default=300.0, ge=0, le=86_400)


class GatewayConfig(ApiModel):
    """The whole file."""

    listen: Listen = "0.0.0.0:8080"
    internal: InternalConfig = Field(default_factory=InternalConfig)
    models: tuple[ModelConfig, ...] = Field(strict=False, default=(), max_length=4096)
    routes: tuple[RouteConfig, ...] = Field(strict=False, default=(), max_length=4096)
    tenants: tuple[TenantConfig, ...] = Field(strict=False, default=(), max_length=4096)
    # Without it a request without a key is refused; with it such requests are one tenant with these limits.
    anonymous: LimitsConfig | None = None
    timeouts: TimeoutsConfig = Field(default_factory=TimeoutsConfig)
    bounds: BoundsConfig = Field(default_factory=BoundsConfig)
    drain: DrainConfig = Field(default_factory=DrainConfig)
    probe_seconds: float = Field(default=2.0, ge=0.01, le=60)
    # Where the tokens of the day are kept over restarts.
    state_file: str | None = None
    heartbeat_seconds: float = Field(default=10.0, ge=0.01, le=600)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        known = [(model.namespace, model.name) for model in self.models]
        _refuse_twice("models", [f"{name}.{namespace}" for namespace, name in known])
        _refuse_twice("tenants", [tenant.name for tenant in self.tenants])
        _refuse_twice("keyHashes of all tenants", [key for tenant in self.tenants for key in tenant.key_hashes])
        for route in self.routes:
            for target in route.targets:
                if (target.namespace, target.model) not in known:
                    raise ValueError(f"routes: the target {target.model}.{target.namespace} is none of the models")
        return self


def _refuse_twice(field_name: str, values: list[str]) -> None:
    repeated = sorted({value for value in values if values.count(value) > 1}) if len(set(values)) < len(values) else []
    if repeated:
        raise ValueError(f"{field_name}: {', '.join(repeated)} more than once")


def read_config(path: Path) -> GatewayConfig:
    """Reads and checks the file.

    Raises:
        ConfigError: it cannot be read, is no YAML, or a field is wrong; the message names the field.
    """
    try:
        content = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    return parse_config(content, origin=str(path))


def parse_config(content: Any, *, origin: str) -> GatewayConfig:
    """Checks what the file holds. Raises ConfigError."""
    if not isinstance(content, dict):
        raise ConfigError(f"{origin}: must be a mapping of fields, given {type(content).__name__}")
    try:
        return GatewayConfig.model_validate(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{origin}: {place + ': ' if place else ''}{message}{_given(problem)}") from error


def _given(problem: Any) -> str:
    value = problem["input"]
    # Of a whole mapping the message says enough; a salt or a key's hash is short, yet nobody else's business.
    secret = {"salt", "keyHashes"}.intersection(str(part) for part in problem["loc"])
    return "" if isinstance(value, dict | list) or secret else f", given {value!r}"
