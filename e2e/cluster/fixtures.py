"""The pytest fixture of integration tests; a test package imports it into its conftest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from e2e.cluster.apiserver import ApiServer


@pytest.fixture(scope="session")
def api_server() -> Iterator[ApiServer]:
    """One real API server for the whole test session; tests keep apart by namespace.

    Where the binaries are not built yet, this builds them (minutes, with progress): it never skips.
    """
    with ApiServer() as server:
        yield server
