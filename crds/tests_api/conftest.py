"""The real API server with the generated CRD in it."""

from __future__ import annotations

import time

import pytest
from modelfleet_api import names
from modelfleet_api.crd_schema import crd

from e2e.cluster.apiserver import ApiServer
from e2e.cluster.fixtures import api_server
from tests_api.api import request

__all__ = ["api_server"]

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture(scope="session")
def crd_server(api_server: ApiServer) -> ApiServer:
    """The API server once it serves LLMDeployment."""
    created = request(api_server, "POST", f"{CRDS}?fieldValidation=Strict", body=crd())
    # Another test package of the same session may have installed it.
    assert created.code in (201, 409), created.message
    deadline = time.monotonic() + 15
    while request(api_server, "GET", f"/apis/{names.API_VERSION}/namespaces/default/{names.PLURAL}").code != 200:
        assert time.monotonic() < deadline, "LLMDeployment is not served 15 s after its CRD"
        time.sleep(0.05)
    return api_server
