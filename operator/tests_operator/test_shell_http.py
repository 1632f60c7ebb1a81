"""Probes, metrics, logs, and the setup of kopf."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from modelfleet_kube.connection import Connection
from modelfleet_kube.transport import RequestRecord
from modelfleet_operator.http import HealthChecks, HttpServer
from modelfleet_operator.kopf_setup import KopfLogin, kopf_credentials, kopf_settings
from modelfleet_operator.logs import JsonFormatter
from modelfleet_operator.metrics import Metrics


class Probed:
    """A server whose two answers tests set."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.problem: str | None = None
        self.missing: str | None = "not listed yet: pods"
        checks = HealthChecks(alive=lambda: self.problem, ready=lambda: self.missing)
        self.server = HttpServer(checks=checks, registry=self.metrics.registry)
        self.port = 0

    async def get(self, path: str) -> tuple[int, str]:
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{self.port}{path}") as response:
            return response.status, await response.text()


@pytest.fixture
async def probed() -> AsyncIterator[Probed]:
    probed = Probed()
    probed.port = await probed.server.start(port=0)
    yield probed
    await probed.server.close()


async def test_probes_say_what_is_wrong(probed: Probed) -> None:
    assert await probed.get("/readyz") == (503, "not listed yet: pods\n")
    assert await probed.get("/healthz") == (200, "ok\n")
    probed.missing, probed.problem = None, "the pass over ns/a has been running for 301 s"
    assert await probed.get("/readyz") == (200, "ok\n")
    assert await probed.get("/healthz") == (503, "the pass over ns/a has been running for 301 s\n")


async def test_requests_are_counted_by_verb_resource_and_code(probed: Probed) -> None:
    for code in (200, 200, 409):
        record = RequestRecord(verb="patch", resource="pods", subresource="status", code=code, seconds=0.01)
        probed.metrics.record_request(record)
    _, text = await probed.get("/metrics")
    series = 'modelfleet_operator_api_requests_total{code="200",resource="pods/status",verb="patch"} 2.0'
    assert series in text.splitlines()


def test_a_log_line_is_one_json_object_with_extra_fields_and_the_traceback() -> None:
    record = logging.LogRecord("op", logging.ERROR, "f.py", 1, "lost %s", ("it",), None)
    record.model = "ns/a"
    try:
        raise ValueError("why\nindeed")
    except ValueError as error:
        record.exc_info = (type(error), error, error.__traceback__)
    line = JsonFormatter().format(record)
    decoded = json.loads(line)
    assert "\n" not in line
    assert (decoded["level"], decoded["message"], decoded["model"]) == ("error", "lost it", "ns/a")
    assert decoded["exception"].endswith("ValueError: why\nindeed")


def test_kopf_neither_posts_nor_scans_nor_peers_and_never_gives_up() -> None:
    settings = kopf_settings()
    assert (settings.posting.enabled, settings.scanning.disabled, settings.peering.standalone) == (False, True, True)
    assert not isinstance(settings.networking.error_backoffs, (int, float))
    backoffs = iter(settings.networking.error_backoffs)
    assert [next(backoffs) for _ in range(8)] == [1.0, 2.0, 4.0, 8.0, 16.0, 16.0, 16.0, 16.0]


def test_kopf_gets_our_identity_and_asks_again_before_a_tokens_file_is_replaced(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("abc\n", encoding="utf-8")
    now = datetime(2026, 1, 1, tzinfo=UTC)
    credentials = kopf_credentials(Connection(server="https://api", token_file=token_file), now=now)
    assert (credentials.server, credentials.token) == ("https://api", "abc")
    assert credentials.expiration == now + timedelta(minutes=5)


async def test_kopf_is_slowed_down_when_it_asks_for_credentials_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(KopfLogin, "PAUSE_SECONDS", 0.1)
    login = KopfLogin(Connection(server="https://api", token="abc"))
    started = time.monotonic()
    for _ in range(3):
        assert (await login.credentials()).token == "abc"
    assert time.monotonic() - started >= 0.2
