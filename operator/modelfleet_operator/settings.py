"""The operator's environment, read once at the start.

A value that cannot be used stops the start with one line per variable. Nothing else reads the environment.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

PREFIX = "MODELFLEET_"


class SettingsError(ValueError):
    """One or more variables are missing or unusable; the message has a line for each."""


class Settings(BaseModel):
    """Field `engine_image` is the variable `MODELFLEET_ENGINE_IMAGE`, and so on."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    # The image of engine pods without and with `placement.gpu`.
    engine_image: str = Field(min_length=1)
    engine_gpu_image: str | None = Field(default=None, min_length=1)
    engine_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    # Where the operator itself runs: its Lease is there.
    system_namespace: str = Field(default="modelfleet-system", min_length=1, max_length=63)
    # Who we are among several replicas.
    pod_name: str = Field(default_factory=socket.gethostname, min_length=1)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    # Probes and metrics. 0: any free port, for tests.
    http_port: int = Field(default=8080, ge=0, le=65535)
    # False: this process acts without asking; only for a single replica or development.
    leader_election: bool = True
    # Passes at the same time; the API server is the bottleneck above 16.
    workers: int = Field(default=16, ge=1, le=256)


def load_settings(environment: Mapping[str, str]) -> Settings:
    """The settings of an environment. Raises SettingsError naming each variable, its limit and what was given."""
    given = {name.removeprefix(PREFIX).lower(): value for name, value in environment.items() if name.startswith(PREFIX)}
    if "log_level" in given:
        given["log_level"] = given["log_level"].upper()
    # An empty variable is an absent one: that is how charts render an unset value.
    given = {name: value for name, value in given.items() if value != ""}
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        lines = [_line(name=str(item["loc"][0]), message=item["msg"], given=given) for item in error.errors()]
        raise SettingsError("\n".join(lines)) from error


def _line(*, name: str, message: str, given: Mapping[str, str]) -> str:
    was = f", given {given[name]!r}" if name in given else ""
    return f"{PREFIX}{name.upper()}: {message}{was}"
