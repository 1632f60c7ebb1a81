"""How kopf is used here: its watch of the LLMDeployments, its process and signals; no writes, no finalizers.

Must not register handlers: they stand in `main`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import kopf
from modelfleet_kube.connection import Connection

# Kubelets refresh a projected token when 20 % of its hour are left; kopf asks for credentials again after this.
CREDENTIAL_LIFE = timedelta(minutes=5)
# SIGTERM to exit; the chart's terminationGracePeriodSeconds is 30.
EXIT_SECONDS = 25.0


class _Backoffs:
    """1, 2, 4, 8, 16, 16, … seconds for ever: an API server that is away for an hour is no reason to exit.

    kopf's own default gives up after eight attempts and ends the process.
    """

    def __iter__(self) -> Iterator[float]:
        seconds = 1.0
        while True:
            yield seconds
            seconds = min(16.0, seconds * 2)


def kopf_settings() -> kopf.OperatorSettings:
    """Everything off that writes to objects or scans the cluster (measured: operator-at-scale in docs/decisions)."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.networking.error_backoffs = _Backoffs()
    settings.networking.connect_timeout = 10.0
    settings.networking.request_timeout = 30.0
    settings.watching.connect_timeout = 10.0
    settings.watching.server_timeout = 300  # An int: it goes into the URL as it is, and 300.0 is a 400.
    settings.process.ultimate_exiting_timeout = EXIT_SECONDS
    return settings


class KopfLogin:
    """Hands kopf the server and identity of our own client, at most once per `PAUSE_SECONDS`.

    kopf asks again after each 401, without a pause: 65 times a second while a token is refused [measured].
    """

    PAUSE_SECONDS = 2.0

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._next_at = 0.0

    async def credentials(self) -> kopf.ConnectionInfo:
        """The credentials of now; the token file is read anew."""
        clock = asyncio.get_running_loop().time
        await asyncio.sleep(max(0.0, self._next_at - clock()))
        self._next_at = clock() + self.PAUSE_SECONDS
        return kopf_credentials(self._connection, now=datetime.now(UTC))


def kopf_credentials(connection: Connection, *, now: datetime) -> kopf.ConnectionInfo:
    """A connection as kopf wants it; with a token file it expires, so that kopf asks for the next one."""
    return kopf.ConnectionInfo(
        server=connection.server,
        ca_data=connection.ca_pem,
        insecure=connection.is_insecure,
        certificate_data=connection.client_certificate_pem,
        private_key_data=connection.client_key_pem,
        token=connection.bearer_token(),
        expiration=now + CREDENTIAL_LIFE if connection.token_file is not None else None,
    )
