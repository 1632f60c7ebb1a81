"""What the operator tells Prometheus about itself.

Labels are bounded: kinds, verbs, codes and results, never the name of a model. Must not do I/O.
"""

from __future__ import annotations

from collections.abc import Callable

from modelfleet_kube.transport import RequestRecord
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

PREFIX = "modelfleet_operator"
# A pass without writes takes about a millisecond, one with six writes some tens, a slow API server seconds.
PASS_BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """All series, in a registry of their own (so that tests can have many)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reconciles = Counter(
            f"{PREFIX}_reconciles", "Passes over one LLMDeployment.", ["result"], registry=self.registry
        )
        self.reconcile_seconds = Histogram(
            f"{PREFIX}_reconcile_seconds",
            "Duration of a pass.",
            buckets=PASS_BUCKETS_SECONDS,
            registry=self.registry,
        )
        self.api_requests = Counter(
            f"{PREFIX}_api_requests",
            "Requests to the API server; code 0: no answer.",
            ["verb", "resource", "code"],
            registry=self.registry,
        )
        self.api_request_seconds = Histogram(
            f"{PREFIX}_api_request_seconds",
            "Duration of requests to the API server, watches excepted.",
            ["verb"],
            registry=self.registry,
        )
        self.watch_errors = Counter(
            f"{PREFIX}_watch_errors", "Failed lists and watches.", ["resource"], registry=self.registry
        )
        self.event_errors = Counter(
            f"{PREFIX}_event_errors", "Kubernetes events that could not be written.", registry=self.registry
        )
        self.leader = Gauge(f"{PREFIX}_leader", "1 on the replica that acts.", registry=self.registry)
        self._queue = Gauge(
            f"{PREFIX}_queue_keys", "LLMDeployments waiting for a pass or in one.", ["state"], registry=self.registry
        )
        self._cache = Gauge(f"{PREFIX}_cache_objects", "Cached objects.", ["resource"], registry=self.registry)

    def record_request(self, record: RequestRecord) -> None:
        """One finished API request."""
        resource = f"{record.resource}/{record.subresource}" if record.subresource else record.resource
        self.api_requests.labels(verb=record.verb, resource=resource, code=str(record.code)).inc()
        if record.verb != "watch":
            self.api_request_seconds.labels(verb=record.verb).observe(record.seconds)

    def observe_queue(
        self, *, ready: Callable[[], float], delayed: Callable[[], float], active: Callable[[], float]
    ) -> None:
        """Reads the queue's depth at each scrape."""
        self._queue.labels(state="ready").set_function(ready)
        self._queue.labels(state="delayed").set_function(delayed)
        self._queue.labels(state="active").set_function(active)

    def observe_cache(self, resource: str, *, size: Callable[[], float]) -> None:
        """Reads a cache's size at each scrape."""
        self._cache.labels(resource=resource).set_function(size)
