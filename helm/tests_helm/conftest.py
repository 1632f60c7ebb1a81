"""The real API server for what only it can judge."""

from __future__ import annotations

from e2e.cluster.fixtures import api_server

__all__ = ["api_server"]
