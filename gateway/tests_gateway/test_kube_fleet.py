"""Objects of the API server as models and endpoints: tables, snapshots, and a pod as the operator renders it."""

from __future__ import annotations

from typing import Any

import pytest
from modelfleet_api import names
from modelfleet_api.llmdeployment import LLMDeploymentSpec
from modelfleet_gateway.fleet import Endpoint, Fleet, Model, ModelId
from modelfleet_gateway.kube_fleet import FleetBook, endpoint_of, model_of
from modelfleet_operator.revisions import target_revision
from modelfleet_operator.state import OperatorSettings, Resource

from tests_gateway.kube_objects import container_status, engine_container, engine_pod, llm_deployment

M = ModelId(namespace="shop", name="m")
CREATED_AT = 1767225600.0  # 2026-01-01T00:00:00Z
ENDPOINT = Endpoint(uid="uid-m-abc-0", model=M, base_url="http://10.0.0.7:8000", revision="abc")


def with_metadata(manifest: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    """The manifest with fields of its metadata added or replaced."""
    return {**manifest, "metadata": {**manifest["metadata"], **metadata}}


@pytest.mark.parametrize(
    ("manifest", "model"),
    [
        (llm_deployment(), Model(id=M, served_name="m", created_at=CREATED_AT)),
        (
            llm_deployment(model={"source": "pvc://models/m", "name": "org/Chat-7B"}),
            Model(id=M, served_name="org/Chat-7B", created_at=CREATED_AT),
        ),
        (llm_deployment(suspend=True), Model(id=M, served_name="m", created_at=CREATED_AT, is_suspended=True)),
        (llm_deployment(suspend=False), Model(id=M, served_name="m", created_at=CREATED_AT)),
        (with_metadata(llm_deployment(), deletionTimestamp="2026-01-02T00:00:00Z"), None),
        # Stored before a rule was there: as much as can be read.
        ({"metadata": {"name": "m", "namespace": "shop"}}, Model(id=M, served_name="m")),
    ],
)
def test_an_llmdeployment_is_the_model_it_describes_unless_it_is_being_deleted(
    manifest: dict[str, Any], model: Model | None
) -> None:
    assert model_of(manifest) == model


@pytest.mark.parametrize(
    ("pod", "changes"),
    [
        (engine_pod(), {}),
        (engine_pod(podIP="fd00::7"), {"base_url": "http://[fd00::7]:8000"}),
        (engine_pod(containerStatuses=[container_status("engine", restarts=3)]), {"restarts": 3}),
        (
            engine_pod(containerStatuses=[container_status("sidecar", restarts=9), container_status("engine")]),
            {"restarts": 0},
        ),
        (engine_pod(containerStatuses=None), {"restarts": 0}),
        (engine_pod(annotations={"modelfleet.dev/draining": ""}), {"is_draining": True}),
        (with_metadata(engine_pod(), deletionTimestamp="2026-01-02T00:00:00Z"), {"is_draining": True}),
        # Not ready is for the probe to find out: the readiness gate waits for the gateways.
        (engine_pod(conditions=[{"type": "Ready", "status": "False"}]), {}),
        (
            {**engine_pod(), "spec": {"containers": [{"name": "sidecar"}, engine_container(9000)]}},
            {"base_url": "http://10.0.0.7:9000"},
        ),
        ({**engine_pod(), "spec": {"containers": [{"name": "engine"}]}}, {}),
    ],
)
def test_a_running_engine_pod_is_an_endpoint_with_its_address_restarts_and_drain_mark(
    pod: dict[str, Any], changes: dict[str, Any]
) -> None:
    expected = {"uid": "uid-m-abc-0", "model": M, "base_url": "http://10.0.0.7:8000", "revision": "abc", **changes}
    assert endpoint_of(pod) == Endpoint(**expected)


@pytest.mark.parametrize(
    "pod",
    [
        engine_pod(podIP=None),
        engine_pod(phase="Pending"),
        engine_pod(phase="Failed"),
        engine_pod(phase="Succeeded"),
        {**engine_pod(), "status": None},
        with_metadata(engine_pod(), labels={names.LABEL_MODEL: "m", names.LABEL_ROLE: "worker"}),
        with_metadata(engine_pod(), labels={names.LABEL_ROLE: names.ROLE_ENGINE}),
        with_metadata(engine_pod(), labels=None),
    ],
)
def test_a_pod_without_an_engine_an_address_or_a_started_container_is_no_endpoint(pod: dict[str, Any]) -> None:
    assert endpoint_of(pod) is None


def test_a_pod_as_the_operator_renders_it_is_an_endpoint_of_its_model_and_revision() -> None:
    spec = LLMDeploymentSpec.model_validate({"model": {"source": "pvc://models/m"}})
    resource = Resource(name="m", namespace="shop", uid="u", generation=1, spec={}, status={})
    settings = OperatorSettings(engine_image="engine:1")
    revision = target_revision(resource, spec, existing=(), settings=settings)
    template = revision.pod_template
    metadata = {**template["metadata"], "name": "m-0", "namespace": "shop", "uid": "uid-m-abc-0"}

    pod = {**engine_pod(), "metadata": metadata, "spec": template["spec"]}

    assert endpoint_of(pod) == Endpoint(
        uid="uid-m-abc-0", model=M, base_url="http://10.0.0.7:8000", revision=revision.hash
    )


def test_a_snapshot_has_the_endpoints_of_the_models_that_exist_and_is_not_changed_later() -> None:
    book = FleetBook()
    assert book.fleet() == Fleet()
    assert book.take_pod(("shop", "m-abc-0"), engine_pod())
    assert book.fleet() == Fleet()

    assert book.take_model(("shop", "m"), llm_deployment())
    whole = Fleet(models={M: Model(id=M, served_name="m", created_at=CREATED_AT)}, endpoints={"uid-m-abc-0": ENDPOINT})
    before = book.fleet()
    assert before == whole

    assert book.take_model(("shop", "m"), None)
    assert book.fleet() == Fleet()
    assert before == whole


def test_what_changes_nothing_of_the_fleet_says_so() -> None:
    book = FleetBook()
    assert not book.take_pod(("shop", "m-abc-0"), engine_pod(phase="Pending"))
    assert book.take_pod(("shop", "m-abc-0"), engine_pod())
    ready = [{"type": "Ready", "status": "True"}]
    assert not book.take_pod(("shop", "m-abc-0"), engine_pod(conditions=ready))
    assert book.take_model(("shop", "m"), llm_deployment())
    assert not book.take_model(("shop", "m"), llm_deployment(replicas=7))
    assert book.take_pod(("shop", "m-abc-0"), engine_pod(phase="Failed"))
    assert not book.take_pod(("shop", "m-abc-0"), None)


def test_a_pod_of_the_same_name_that_came_in_between_takes_the_place_of_the_one_before() -> None:
    book = FleetBook()
    book.take_model(("shop", "m"), llm_deployment())
    book.take_pod(("shop", "m-abc-0"), engine_pod())

    assert book.take_pod(("shop", "m-abc-0"), with_metadata(engine_pod(), uid="another"))

    assert list(book.fleet().endpoints) == ["another"]
