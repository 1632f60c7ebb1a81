"""How kopf is used here: its watch of the LLMDeployments, its process and signals; no writes, no finalizers.

Must not register handlers: they stand in `main`.
"""

from __future__ import annotations

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


def kopf_credentials(connection: Connection, *, now: datetime | None = None) -> kopf.ConnectionInfo:
    """The same server and identity that our own client uses."""
    taken_at = datetime.now(UTC) if now is None else now
    return kopf.ConnectionInfo(
        server=connection.server,
        ca_data=connection.ca_pem,
        insecure=connection.is_insecure,
        certificate_data=connection.client_certificate_pem,
        private_key_data=connection.client_key_pem,
        token=connection.bearer_token(),
        expiration=taken_at + CREDENTIAL_LIFE if connection.token_file is not None else None,
    )
