"""The environment of a gateway in a cluster, as a configuration: what the chart sets where others give `--config`.

A value that cannot be used stops the start with one line per variable. Models come from the cluster, not from here.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modelfleet_gateway.config import DrainConfig, GatewayConfig, InternalConfig, LimitsConfig
from modelfleet_gateway.errors import ConfigError

PREFIX = "MODELFLEET_GATEWAY_"


class KubeSettings(BaseModel):
    """Field `http_port` is the variable `MODELFLEET_GATEWAY_HTTP_PORT`, and so on."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    # The OpenAI API and probes; 0: any free port, for tests.
    http_port: int = Field(default=8080, ge=0, le=65535)
    # Metrics, and what operator and autoscaler ask for.
    internal_port: int = Field(default=8081, ge=0, le=65535)
    # The mounted key shared with engines and operator; absent: the engines are open.
    internal_key_file: str | None = Field(default=None, min_length=1)
    # True: whoever reaches the gateway may use every model.
    anonymous: bool = False
    # After SIGTERM, how long running answers may take.
    drain_timeout_seconds: int = Field(default=300, ge=0, le=86_400)


def config_of_environment(environment: Mapping[str, str]) -> GatewayConfig:
    """The configuration that an environment describes.

    Raises:
        ConfigError: the message names each variable that cannot be used, its limit and what was given.
    """
    given = {name.removeprefix(PREFIX).lower(): value for name, value in environment.items() if name.startswith(PREFIX)}
    # An empty variable is an absent one: that is how charts render an unset value.
    given = {name: value for name, value in given.items() if value != ""}
    try:
        settings = KubeSettings.model_validate(given)
    except ValidationError as error:
        problems = [(str(item["loc"][0]), item["msg"]) for item in error.errors(include_url=False)]
        lines = [f"{PREFIX}{name.upper()}: {message}, given {given[name]!r}" for name, message in problems]
        raise ConfigError("\n".join(lines)) from error
    return GatewayConfig(
        # Without an address: all of them, IPv6 as well.
        listen=f":{settings.http_port}",
        internal=InternalConfig(listen=f":{settings.internal_port}", key_file=settings.internal_key_file),
        anonymous=LimitsConfig() if settings.anonymous else None,
        drain=DrainConfig(timeout_seconds=float(settings.drain_timeout_seconds)),
    )
