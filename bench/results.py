"""What one run of the benchmark found: plain data, written as JSON, read by the tables and the checks."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.machine import MachineReport
from bench.model_facts import ModelFacts
from bench.summary import LoadSummary


@dataclass(slots=True, kw_only=True)
class ServerReport:
    """One server's row; None and absent loads were not measured. Filled while the run goes on."""

    name: str
    note: str
    unavailable: str | None = None
    # Why a load is missing, by its name.
    problems: dict[str, str] = field(default_factory=dict)
    ready_seconds: float | None = None
    idle_bytes: int | None = None
    peak_bytes: int | None = None
    loads: dict[str, LoadSummary] = field(default_factory=dict)
    cold_ttft_seconds: float | None = None
    cached_ttft_seconds: float | None = None
    prefill_tokens_per_second: float | None = None


@dataclass(slots=True, kw_only=True)
class Report:
    """The whole run."""

    started_at: str
    quick: bool
    commit: str
    machine: MachineReport
    facts: ModelFacts
    kv_cache_bytes: int
    # CPU that somebody else used just before a measurement, as a part of all cores: the largest seen.
    largest_disturbance: float = 0.0
    servers: dict[str, ServerReport] = field(default_factory=dict)
    seconds: float = 0.0
