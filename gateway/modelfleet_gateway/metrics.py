"""Prometheus text, made from plain counts when it is asked for: the hot path knows nothing of it. Own registry."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from modelfleet_gateway.dispatcher import Dispatcher
from modelfleet_gateway.gateway_statistics import GatewayStatistics, Histogram, ModelStatistics
from modelfleet_gateway.pool import ModelPool

PREFIX = "modelfleet_gateway_"
# Of models: a cluster may have more, and each has some 60 series.
MAX_MODELS = 1000


class Metrics(Collector):
    """All of a gateway's families."""

    def __init__(self, *, dispatcher: Dispatcher, statistics: GatewayStatistics) -> None:
        self._dispatcher = dispatcher
        self._statistics = statistics
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self._registry)

    def describe(self) -> Iterator[Metric]:
        """Nothing ahead of time."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Read now."""
        requests = CounterMetricFamily(
            PREFIX + "requests", "Requests answered, by model, tenant and status.", labels=("model", "tenant", "status")
        )
        for (model, tenant, status), count in sorted(self._statistics.requests.items()):
            requests.add_metric((model, tenant, str(status)), count)
        yield requests
        decision = HistogramMetricFamily(PREFIX + "decision_seconds", "The choice of an engine.")
        decision.add_metric((), _buckets(self._statistics.decision_seconds), self._statistics.decision_seconds.sum)
        yield decision
        pools = [pool for _, pool in itertools.islice(sorted(self._dispatcher.pools.items()), MAX_MODELS)]
        yield from _counters(pools)
        yield from _gauges(pools)
        yield from _histograms(pools)


def _counters(pools: list[ModelPool]) -> Iterator[Metric]:
    families: tuple[tuple[str, str, Callable[[ModelStatistics], float]], ...] = (
        ("held_requests", "Requests that had to wait for room.", lambda statistics: statistics.held),
        ("retries", "Requests sent to another engine.", lambda statistics: statistics.retries),
        ("cut_streams", "Streams that broke after their first byte.", lambda statistics: statistics.cut_streams),
        ("prompt_tokens_estimated", "Prompt tokens, estimated.", lambda statistics: statistics.prompt_tokens),
        ("prefix_hit_tokens", "Prompt tokens that engines had cached.", lambda statistics: statistics.cached_tokens),
        ("completion_tokens", "Tokens of answers.", lambda statistics: statistics.completion_tokens),
    )
    for name, text, read in families:
        family = CounterMetricFamily(PREFIX + name, text, labels=("model",))
        for pool in pools:
            family.add_metric((pool.model.id.canonical,), read(pool.statistics))
        yield family


def _gauges(pools: list[ModelPool]) -> Iterator[Metric]:
    now = time.monotonic()
    waiting = GaugeMetricFamily(PREFIX + "waiting_requests", "Requests that wait for room.", labels=("model",))
    ready = GaugeMetricFamily(PREFIX + "routable_endpoints", "Engines that take requests.", labels=("model",))
    for pool in pools:
        waiting.add_metric((pool.model.id.canonical,), len(pool.queue))
        ready.add_metric((pool.model.id.canonical,), len(pool.routable(now)))
    yield waiting
    yield ready


def _histograms(pools: list[ModelPool]) -> Iterator[Metric]:
    families: tuple[tuple[str, str, Callable[[ModelStatistics], Histogram]], ...] = (
        (
            "time_to_first_token_seconds",
            "From arrival to the first byte.",
            lambda statistics: statistics.first_token_seconds,
        ),
        ("inter_token_latency_seconds", "Between two chunks.", lambda statistics: statistics.token_gap_seconds),
    )
    for name, text, read in families:
        family = HistogramMetricFamily(PREFIX + name, text, labels=("model",))
        for pool in pools:
            histogram = read(pool.statistics)
            family.add_metric((pool.model.id.canonical,), _buckets(histogram), histogram.sum)
        yield family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Prometheus' buckets are cumulative."""
    bounds = [*(repr(bound) for bound in histogram.bounds), "+Inf"]
    return list(zip(bounds, itertools.accumulate(histogram.counts), strict=True))
