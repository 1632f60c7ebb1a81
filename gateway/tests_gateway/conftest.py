"""The real API server for the tests of the Kubernetes source."""

from __future__ import annotations

from e2e.cluster.fixtures import api_server

__all__ = ["api_server"]
