"""OpenTelemetry traces, when `otlp_endpoint` is set: a span for each request, sent from a thread of its own.

Attributes are OpenTelemetry's `gen_ai.*`, and vLLM's names for what it has no word for (`gen_ai.latency.*`), so that
dashboards made for vLLM show this engine too. https://opentelemetry.io/docs/specs/semconv/gen-ai/
The packages (`pip install modelfleet[tracing]`) are imported only here and only when asked for. Prompts and answers
are in no span.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from modelfleet_engine.errors import ModelError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.util.types import AttributeValue

SPAN_NAME = "llm_request"
SERVICE_NAME = "modelfleet-engine"
_TRACES_PATH = "/v1/traces"
_OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSpan:
    """What a span says of one request that has ended. None, or empty: does not apply, and is left out.

    `duration_seconds` and `time_to_first_token_seconds` count from `started_unix_ns`, the arrival; `queue_seconds` is
    from the admission to the first step.
    """

    request_id: str
    method: str
    path: str
    status: int
    started_unix_ns: int
    duration_seconds: float
    model: str | None = None
    choices: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reasons: tuple[str, ...] = ()
    queue_seconds: float | None = None
    time_to_first_token_seconds: float | None = None
    error_code: str | None = None

    def attributes(self) -> dict[str, AttributeValue]:
        """The attributes of the span."""
        known: dict[str, AttributeValue | None] = {
            "gen_ai.operation.name": _OPERATIONS.get(self.path),
            "gen_ai.provider.name": "modelfleet",
            "gen_ai.request.id": self.request_id,
            "gen_ai.request.model": self.model,
            "gen_ai.response.model": self.model,
            "gen_ai.request.choice.count": self.choices,
            "gen_ai.request.n": self.choices,
            "gen_ai.request.max_tokens": self.max_tokens,
            "gen_ai.request.temperature": self.temperature,
            "gen_ai.request.top_p": self.top_p,
            "gen_ai.usage.input_tokens": self.prompt_tokens,
            "gen_ai.usage.output_tokens": self.completion_tokens,
            "gen_ai.usage.prompt_tokens": self.prompt_tokens,
            "gen_ai.usage.completion_tokens": self.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": self.cached_tokens,
            "gen_ai.response.finish_reasons": self.finish_reasons or None,
            "gen_ai.latency.time_in_queue": self.queue_seconds,
            "gen_ai.latency.time_to_first_token": self.time_to_first_token_seconds,
            "gen_ai.latency.e2e": self.duration_seconds,
            "http.request.method": self.method,
            "url.path": self.path,
            "http.response.status_code": self.status,
            "error.type": self.error_code,
        }
        return {name: value for name, value in known.items() if value is not None}


class Tracer:
    """Makes spans and sends them in batches, off the event loop. A full queue drops spans: no request waits for it."""

    def __init__(self, endpoint: str) -> None:
        """`endpoint` is a collector's base address, such as `http://collector:4318`.

        Raises:
            ModelError: the endpoint is no HTTP address, or the packages are not installed.
        """
        url = traces_url(endpoint)
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ModelError(
                f"otlp_endpoint is set, but the packages for traces are not installed ({error.name} is missing): "
                "install modelfleet[tracing]"
            ) from error
        # OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME and OTEL_TRACES_SAMPLER mean here what they mean everywhere.
        resource = Resource.create(
            Resource({"service.name": SERVICE_NAME}).merge(OTELResourceDetector().detect()).attributes
        )
        self._provider: TracerProvider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
        self._tracer = self._provider.get_tracer("modelfleet_engine")
        self._propagator = TraceContextTextMapPropagator()

    def record(self, span: RequestSpan, headers: Mapping[str, str]) -> None:
        """Queues the span of a request that has ended: a child of the caller's where there is a W3C `traceparent`."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        started = self._tracer.start_span(
            SPAN_NAME,
            context=self._propagator.extract(headers),
            kind=SpanKind.SERVER,
            attributes=span.attributes(),
            start_time=span.started_unix_ns,
        )
        # As the conventions for servers have it: a client's mistake is no error of the span.
        if span.status >= 500 or (span.status < 400 and span.error_code is not None):
            started.set_status(Status(StatusCode.ERROR, span.error_code))
        started.end(end_time=span.started_unix_ns + round(span.duration_seconds * 1e9))

    def shutdown(self) -> None:
        """Sends what is queued and ends the thread. Blocks for as long as the collector takes, up to its time-outs."""
        self._provider.shutdown()


def traces_url(endpoint: str) -> str:
    """Where spans are posted to. Raises ModelError if `endpoint` is no HTTP address."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ModelError(f"otlp_endpoint must be an address such as http://collector:4318, given {endpoint!r}")
    base = endpoint.rstrip("/")
    return base if base.endswith(_TRACES_PATH) else base + _TRACES_PATH
