"""The typed keys under which the aiohttp application keeps its state."""

from __future__ import annotations

from aiohttp import web

from modelfleet_engine.metrics import Metrics
from modelfleet_engine.serving import Serving

SERVING = web.AppKey("serving", Serving)
METRICS = web.AppKey("metrics", Metrics)
