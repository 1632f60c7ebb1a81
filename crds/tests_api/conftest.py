"""The real API server with the generated CRDs in it."""

from __future__ import annotations

import time

import pytest
from modelfleet_api.crd_kinds import KINDS
from modelfleet_api.crd_schema import crd

from e2e.cluster.apiserver import ApiServer
from e2e.cluster.fixtures import api_server
from tests_api.api import request
from tests_api.kinds import collection_of

__all__ = ["api_server"]

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture(scope="session")
def crd_server(api_server: ApiServer) -> ApiServer:
    """The API server once it serves all our kinds."""
    for kind in KINDS:
        created = request(api_server, "POST", f"{CRDS}?fieldValidation=Strict", body=crd(kind))
        # Another test package of the same session may have installed it.
        assert created.code in (201, 409), created.message
    deadline = time.monotonic() + 15
    for kind in KINDS:
        while request(api_server, "GET", collection_of(kind)).code != 200:
            assert time.monotonic() < deadline, f"{kind.name} is not served 15 s after its CRD"
            time.sleep(0.05)
    return api_server
