"""Traces: the real exporter sends to a real receiver, whose protobuf is decoded and compared."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from modelfleet_engine.errors import ModelError
from modelfleet_engine.http.app import build_app
from modelfleet_engine.tracing import RequestSpan, Tracer, traces_url
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tests_engine.server_process import fake_server
from tests_engine.serving_here import serving_here
from tests_engine.tiny_model import write_tiny_model

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@dataclass
class Collector:
    """An OTLP receiver: what was posted to /v1/traces, decoded."""

    endpoint: str = ""
    requests: list[ExportTraceServiceRequest] = field(default_factory=list)

    async def receive(self, request: web.Request) -> web.Response:
        self.requests.append(ExportTraceServiceRequest.FromString(await request.read()))
        body = ExportTraceServiceResponse().SerializeToString()
        return web.Response(body=body, content_type="application/x-protobuf")

    @property
    def spans(self) -> list[Any]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@asynccontextmanager
async def _collector() -> AsyncIterator[Collector]:
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.receive)
    async with TestServer(app) as server:
        collector.endpoint = str(server.make_url("/"))
        yield collector


def _attributes(span: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        return (
            tuple(plain(item) for item in value.array_value.values) if kind == "array_value" else getattr(value, kind)
        )

    return {item.key: plain(item.value) for item in span.attributes}


SPAN = RequestSpan(
    request_id="r1",
    method="POST",
    path="/v1/chat/completions",
    status=200,
    started_unix_ns=1_700_000_000_000_000_000,
    duration_seconds=1.5,
    model="tiny",
    choices=2,
    max_tokens=9,
    temperature=0.5,
    top_p=1.0,
    prompt_tokens=20,
    cached_tokens=16,
    completion_tokens=7,
    finish_reasons=("stop", "length"),
    queue_seconds=0.25,
    time_to_first_token_seconds=0.5,
)


async def test_a_span_says_what_the_request_was_and_took_under_the_callers_trace() -> None:
    async with _collector() as collector:
        tracer = Tracer(collector.endpoint)
        tracer.record(SPAN, {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"})
        await asyncio.to_thread(tracer.shutdown)

    (span,) = collector.spans
    assert (span.name, span.kind) == ("llm_request", span.SPAN_KIND_SERVER)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    assert span.start_time_unix_nano == 1_700_000_000_000_000_000
    assert span.end_time_unix_nano == 1_700_000_001_500_000_000
    assert span.status.code == span.status.STATUS_CODE_UNSET
    assert _attributes(span) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "modelfleet",
        "gen_ai.request.id": "r1",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.model": "tiny",
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.n": 2,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.usage.input_tokens": 20,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.usage.prompt_tokens": 20,
        "gen_ai.usage.completion_tokens": 7,
        "gen_ai.usage.cache_read.input_tokens": 16,
        "gen_ai.response.finish_reasons": ("stop", "length"),
        "gen_ai.latency.time_in_queue": 0.25,
        "gen_ai.latency.time_to_first_token": 0.5,
        "gen_ai.latency.e2e": 1.5,
        "http.request.method": "POST",
        "url.path": "/v1/chat/completions",
        "http.response.status_code": 200,
    }
    resource = collector.requests[0].resource_spans[0].resource
    assert _attributes(resource)["service.name"] == "modelfleet-engine"


async def test_the_environment_names_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "chat.team")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "zone=a")
    async with _collector() as collector:
        tracer = Tracer(collector.endpoint)
        tracer.record(SPAN, {})
        await asyncio.to_thread(tracer.shutdown)

    attributes = _attributes(collector.requests[0].resource_spans[0].resource)
    assert (attributes["service.name"], attributes["zone"]) == ("chat.team", "a")


@pytest.mark.parametrize(
    ("status", "error_code", "is_error"),
    [(200, None, False), (400, "invalid_value", False), (503, "engine_draining", True), (200, "engine_failed", True)],
)
async def test_only_our_own_failures_are_errors_of_the_span(
    status: int, error_code: str | None, is_error: bool
) -> None:
    async with _collector() as collector:
        tracer = Tracer(collector.endpoint)
        span = RequestSpan(
            request_id="r1",
            method="POST",
            path="/v1/completions",
            status=status,
            started_unix_ns=1,
            duration_seconds=1.0,
            error_code=error_code,
        )
        tracer.record(span, {})
        await asyncio.to_thread(tracer.shutdown)

    (sent,) = collector.spans
    assert (sent.status.code == sent.status.STATUS_CODE_ERROR) is is_error
    assert _attributes(sent).get("error.type") == error_code
    assert sent.parent_span_id == b""


async def test_every_request_but_probes_is_a_span_without_a_word_of_its_prompt(tmp_path: Path) -> None:
    async with _collector() as collector, serving_here(write_tiny_model(tmp_path / "tiny")) as (serving, _):
        tracer = serving.tracer = Tracer(collector.endpoint)
        async with TestClient(TestServer(build_app(serving))) as client:
            body = {"model": "tiny", "prompt": "secret", "max_tokens": 3, "temperature": 0}
            headers = {"x-request-id": "mine", "traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
            assert (await client.post("/v1/completions", json=body, headers=headers)).status == 200
            assert (await client.post("/v1/completions", json={**body, "max_tokens": 0.5})).status == 400
            for probe in ("/health", "/load", "/metrics"):
                await client.get(probe)
        await asyncio.to_thread(tracer.shutdown)

    served, refused = collector.spans
    attributes = _attributes(served)
    assert served.trace_id.hex() == TRACE_ID
    assert attributes["gen_ai.request.id"] == "mine"
    assert attributes["gen_ai.operation.name"] == "text_completion"
    assert (attributes["gen_ai.usage.input_tokens"], attributes["gen_ai.usage.output_tokens"]) == (6, 3)
    assert attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert attributes["gen_ai.latency.time_in_queue"] <= attributes["gen_ai.latency.time_to_first_token"]
    assert attributes["gen_ai.latency.time_to_first_token"] <= attributes["gen_ai.latency.e2e"]
    assert _attributes(refused)["http.response.status_code"] == 400
    assert all(b"secret" not in request.SerializeToString() for request in collector.requests)


async def test_the_last_spans_are_sent_before_a_drained_process_ends(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "tiny")
    async with _collector() as collector:

        def serve_once() -> int:
            flags = ("--otlp-endpoint", collector.endpoint, "--accept-after-sigterm-seconds", "0")
            with fake_server(directory, *flags) as server:
                server.post("/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 2})
                server.terminate()
                return server.wait()

        assert await asyncio.to_thread(serve_once) == 0

    assert [_attributes(span)["gen_ai.usage.output_tokens"] for span in collector.spans] == [2]


def test_a_collector_that_never_answers_holds_up_neither_requests_nor_the_drain(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "tiny")
    # Accepts connections (the backlog does) and never reads them.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        flags = ("--otlp-endpoint", endpoint, "--accept-after-sigterm-seconds", "0")
        with fake_server(directory, *flags) as server:
            answer = server.post("/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 2})
            server.terminate()
            assert server.wait() == 0

    assert answer.status == 200
    assert server.event("traces_dropped")["waited_seconds"] == 2.0


def test_a_missing_package_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)

    with pytest.raises(ModelError, match=r"otlp_endpoint is set, .* install modelfleet\[tracing\]"):
        Tracer("http://collector:4318")


def test_the_endpoint_is_a_collectors_base_address() -> None:
    assert traces_url("http://c:4318") == "http://c:4318/v1/traces"
    assert traces_url("https://c/otlp/") == "https://c/otlp/v1/traces"
    assert traces_url("http://c:4318/v1/traces") == "http://c:4318/v1/traces"
    for wrong in ("collector:4318", "ftp://c", "http://"):
        with pytest.raises(ModelError, match="otlp_endpoint must be an address such as"):
            traces_url(wrong)


def test_nothing_of_opentelemetry_is_imported_unless_configured() -> None:
    code = "import modelfleet_engine.server, sys; print(any(name.startswith('opentelemetry') for name in sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "False\n"
