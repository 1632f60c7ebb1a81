"""What tenants have used today, kept in a file over restarts: one that is killed loses at most 30 s of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

from modelfleet_api.base import WireModel
from pydantic import ValidationError

from modelfleet_gateway.errors import ConfigError
from modelfleet_gateway.keys import Tenants
from modelfleet_gateway.logs import log_event
from modelfleet_gateway.quota import DayUse

PERIOD_SECONDS = 30.0


class _TenantState(WireModel):
    day: int
    tokens: dict[str, int]


class _State(WireModel):
    version: int = 1
    tenants: dict[str, _TenantState]


class QuotaState:
    """One file; no path: nothing is kept."""

    def __init__(self, path: str | None, tenants: Tenants) -> None:
        self._path = None if path is None else Path(path)
        self._tenants = tenants
        self._saved: Mapping[str, DayUse] = {}

    def load(self) -> None:
        """Takes in what the file holds; a missing or a broken one is none.

        Raises:
            ConfigError: it is there and cannot be read.
        """
        if self._path is None:
            return
        try:
            state = _State.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return
        except ValidationError:
            log_event("quota_state_broken", path=str(self._path))
            return
        except OSError as error:
            raise ConfigError(f"{self._path}: the state file cannot be read: {error.strerror}") from error
        self._tenants.restore({name: DayUse(day=use.day, tokens=use.tokens) for name, use in state.tenants.items()})

    def save(self) -> None:
        """Writes the file anew, whole or not at all. A failure is logged: requests are worth more than their count."""
        uses = self._tenants.checkpoint()
        if self._path is None or uses == self._saved:
            return
        tenants = {name: _TenantState(day=use.day, tokens=dict(use.tokens)) for name, use in uses.items()}
        temporary = self._path.with_name(self._path.name + ".new")
        try:
            temporary.write_text(_State(tenants=tenants).model_dump_json(by_alias=True))
            os.replace(temporary, self._path)
        except OSError as error:
            log_event("quota_state_not_saved", path=str(self._path), error=str(error))
            return
        self._saved = uses

    async def run(self) -> None:
        """Saves every 30 s until cancelled. A few KB: written between two requests, not in a thread."""
        while True:
            await asyncio.sleep(PERIOD_SECONDS)
            self.save()
