"""Prometheus text in vLLM's names and labels, made from the same figures as `GET /load`.

A collector that reads the state when it is scraped: the hot path counts plain integers. Own registry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from modelfleet_api import metric_names as names
from modelfleet_api.protocol import Load, StepTime
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from modelfleet_engine.admission import Refusal
from modelfleet_engine.load import Histogram
from modelfleet_engine.request import FinishReason
from modelfleet_engine.schedule import SchedulerStats
from modelfleet_engine.serving import Serving

_LABELS = (names.LABEL_MODEL_NAME, names.LABEL_ENGINE)
# Beside those of the queue. Every reason is shown from the start: a rate needs a first value.
_OTHER_REFUSALS = ("draining", "unauthorized")


class EngineCollector(Collector):
    """Turns a `Serving` into metric families."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        # vLLM numbers its engine replicas within a process; there is one here.
        self._labels = (serving.config.served_model_name, "0")

    def collect(self) -> Iterator[Metric]:
        """All families; gauges are zero until the model is loaded."""
        load = self._serving.load()
        yield from self._gauges(load)
        yield from self._counters(load)
        yield from self._requests()
        yield from self._histograms()
        yield from self._infos(load)
        step_time, phases = _terms(load.step_time), self._serving.start_phases
        yield self._by_label(names.STEP_TIME_SECONDS, "The learned step time.", names.LABEL_TERM, step_time)
        yield self._by_label(names.START_PHASE_SECONDS, "What the start took.", names.LABEL_PHASE, phases)

    @property
    def _scheduler(self) -> SchedulerStats | None:
        return None if self._serving.model is None else self._serving.model.bridge.stats.scheduler

    def _gauges(self, load: Load) -> Iterator[Metric]:
        scheduler = self._scheduler
        waste = 0.0 if scheduler is None else scheduler.kv_waste_ratio
        cached = 0 if scheduler is None else scheduler.kv_blocks_cached
        usage = load.kv_blocks_used / load.kv_blocks_total if load.kv_blocks_total else 0.0
        yield self._gauge(names.NUM_REQUESTS_RUNNING, "Sequences in the running batch.", load.running)
        yield self._gauge(names.NUM_REQUESTS_WAITING, "Sequences that wait for a place.", load.waiting)
        yield self._gauge(names.KV_CACHE_USAGE, "Share of KV blocks in use, 0 to 1.", usage)
        yield self._gauge(names.KV_WASTE, "Share of the held KV blocks' room without a token, 0 to 1.", waste)
        yield self._gauge(names.KV_BLOCKS_CACHED, "Free KV blocks whose content can be found again.", cached)
        yield self._gauge(names.QUEUED_TOKENS, "Tokens that waiting requests must compute.", load.queued_tokens)
        yield self._gauge(names.RUNNING_TOKENS, "Tokens of the running sequences.", load.running_tokens)
        yield self._gauge(names.DRAINING, "1 after SIGTERM.", float(load.draining))

    def _counters(self, load: Load) -> Iterator[Metric]:
        counters = load.counters
        scheduler = self._scheduler
        queried = 0 if scheduler is None else scheduler.prefix_queried_tokens
        expired = 0 if scheduler is None else scheduler.expired
        for name, text, value in (
            (names.NUM_PREEMPTIONS, "Sequences that lost their KV blocks.", counters.preemptions),
            (names.EXPIRED_REQUESTS, "Sequences ended because their time was over.", expired),
            (names.PREFIX_CACHE_QUERIES, "Tokens looked up in the prefix cache.", queried),
            (names.PREFIX_CACHE_HITS, "Tokens found in the prefix cache.", counters.cached_tokens),
            (names.PROMPT_TOKENS, "Prompt tokens of admitted requests.", counters.prompt_tokens),
            (names.GENERATION_TOKENS, "Tokens generated.", counters.generated_tokens),
            (names.STEPS, "Forward passes planned.", counters.steps),
            (names.COMPUTED_TOKENS, "Tokens run through the model.", counters.computed_tokens),
            (names.RECOMPUTED_TOKENS, "Tokens whose KV was lost to preemption.", counters.recomputed_tokens),
            (names.BUSY_SECONDS, "Time the device computed.", counters.busy_seconds),
            (names.CUT_REQUESTS, "Requests ended by a drain's deadline or a failure.", counters.cut_requests),
        ):
            yield self._counter(name, text, value)

    def _requests(self) -> Iterator[Metric]:
        counts = self._serving.counts
        finished = CounterMetricFamily(
            names.REQUEST_SUCCESS,
            "Requests finished, by reason.",
            labels=[*_LABELS, names.LABEL_FINISHED_REASON],
        )
        for reason in sorted({*FinishReason, *counts.finished}):
            finished.add_metric([*self._labels, reason], counts.finished.get(reason, 0))
        yield finished
        refused = CounterMetricFamily(
            names.ADMISSION_REJECTIONS, "Requests refused, by reason.", labels=[*_LABELS, names.LABEL_REASON]
        )
        for reason in sorted({*Refusal, *_OTHER_REFUSALS, *counts.refused}):
            refused.add_metric([*self._labels, reason], counts.refused.get(reason, 0))
        yield refused

    def _histograms(self) -> Iterator[Metric]:
        counts = self._serving.counts
        for name, text, histogram in (
            (names.TIME_TO_FIRST_TOKEN, "From arrival to the first token.", counts.time_to_first_token),
            (names.INTER_TOKEN_LATENCY, "Between two tokens of a sequence.", counts.inter_token_latency),
            (names.E2E_REQUEST_LATENCY, "From arrival to the last token.", counts.duration),
            (names.REQUEST_QUEUE_TIME, "From admission to the first step.", counts.queue_time),
            (names.REQUEST_PROMPT_TOKENS, "Prompt tokens of a request.", counts.prompt_lengths),
            (names.REQUEST_GENERATION_TOKENS, "Tokens generated for a sequence.", counts.output_lengths),
        ):
            family = HistogramMetricFamily(name, text, labels=_LABELS)
            family.add_metric(self._labels, _cumulative_buckets(histogram), histogram.total)
            yield family

    def _infos(self, load: Load) -> Iterator[Metric]:
        """What does not change while the process lives: labels of a gauge that is 1."""
        model, config = self._serving.model, self._serving.config
        yield self._info(
            names.CACHE_CONFIG_INFO,
            "Shape of the KV cache.",
            {
                "block_size": str(load.block_tokens),
                "num_gpu_blocks": str(load.kv_blocks_total),
                "enable_prefix_caching": str(config.prefix_caching),
            },
        )
        backend = {
            names.LABEL_BACKEND: "" if model is None else model.backend,
            names.LABEL_DTYPE: "" if model is None else model.dtype,
        }
        yield self._info(names.KERNEL_BACKEND_INFO, "Which kernels compute, in which data type.", backend)

    def _info(self, name: str, text: str, labels: Mapping[str, str]) -> Metric:
        family = GaugeMetricFamily(name, text, labels=[*_LABELS, *labels])
        family.add_metric([*self._labels, *labels.values()], 1.0)
        return family

    def _by_label(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
        family = GaugeMetricFamily(name, text, labels=[*_LABELS, label])
        for key, value in values.items():
            family.add_metric([*self._labels, key], value)
        return family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=_LABELS)
        family.add_metric(self._labels, value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=_LABELS)
        family.add_metric(self._labels, value)
        return family


def _terms(learned: StepTime | None) -> dict[str, float]:
    """The coefficients in seconds by name; none before anything is learned."""
    if learned is None:
        return {}
    return {
        "base": learned.base_seconds,
        "per_sequence": learned.per_sequence_seconds,
        "per_prefill_token": learned.per_prefill_token_seconds,
        "per_kv_token": learned.per_kv_token_seconds,
    }


def _cumulative_buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Prometheus' form: each bucket holds all values up to its bound, the last one everything."""
    buckets: list[tuple[str, float]] = []
    seen = 0
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        seen += count
        buckets.append((_bound_text(bound), seen))
    return buckets


def _bound_text(bound: float) -> str:
    return "+Inf" if bound == float("inf") else repr(float(bound))


class Metrics:
    """The registry of one server."""

    def __init__(self, serving: Serving) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(EngineCollector(serving))

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self._registry)
