"""Prometheus text, made from plain counts when it is asked for: the hot path knows nothing of it. Own registry."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from modelfleet_gateway.dispatcher import Dispatcher
from modelfleet_gateway.gateway_statistics import GatewayStatistics, Histogram
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
    families = (
        ("held_requests", "Requests that had to wait for room.", lambda pool: pool.statistics.held),
        ("retries", "Requests sent to another engine.", lambda pool: pool.statistics.retries),
        ("cut_streams", "Streams that broke after their first byte.", lambda pool: pool.statistics.cut_streams),
        ("prompt_tokens_estimated", "Prompt tokens, estimated.", lambda pool: pool.statistics.prompt_tokens),
        ("prefix_hit_tokens", "Prompt tokens that engines had cached.", lambda pool: pool.statistics.cached_tokens),
        ("completion_tokens", "Tokens of answers.", lambda pool: pool.statistics.completion_tokens),
    )
    for name, text, read in families:
        family = CounterMetricFamily(PREFIX + name, text, labels=("model",))
        for pool in pools:
            family.add_metric((pool.model.id.canonical,), read(pool))
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
    families = (
        (
            "time_to_first_token_seconds",
            "From arrival to the first byte.",
            lambda pool: pool.statistics.first_token_seconds,
        ),
        ("inter_token_latency_seconds", "Between two chunks.", lambda pool: pool.statistics.token_gap_seconds),
    )
    for name, text, read in families:
        family = HistogramMetricFamily(PREFIX + name, text, labels=("model",))
        for pool in pools:
            family.add_metric((pool.model.id.canonical,), _buckets(read(pool)), read(pool).sum)
        yield family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Prometheus' buckets are cumulative."""
    bounds = [*(repr(bound) for bound in histogram.bounds), "+Inf"]
    return list(zip(bounds, itertools.accumulate(histogram.counts), strict=True))
