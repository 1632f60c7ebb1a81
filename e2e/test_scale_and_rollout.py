"""Scaling and rolling a live model: real clients without retries see no error while pods come and go."""

from __future__ import annotations

import pytest

from e2e import manifests, traffic, waits
from e2e.conftest import Space

pytestmark = pytest.mark.cluster


def test_kubectl_scale_from_one_to_three_to_one_under_traffic_loses_no_answer(space: Space) -> None:
    name = space.apply(manifests.example(replicas=1))
    waits.settled(space.kubectl, name, namespace=space.namespace, replicas=1)

    with traffic.steady(space.base_url(name)) as tally:
        space.kubectl.run("scale", f"llm/{name}", "-n", space.namespace, "--replicas=3")
        waits.settled(space.kubectl, name, namespace=space.namespace, replicas=3, timeout_seconds=180)
        space.kubectl.run("scale", f"llm/{name}", "-n", space.namespace, "--replicas=1")
        waits.settled(space.kubectl, name, namespace=space.namespace, replicas=1, timeout_seconds=180)

    assert dict(tally.failures) == {}
    assert tally.answers > 5


def test_a_spec_change_rolls_to_a_new_revision_under_traffic_without_an_error(space: Space) -> None:
    name = space.apply(manifests.example(replicas=1))
    before = waits.settled(space.kubectl, name, namespace=space.namespace, replicas=1)
    old_pods = {pod["metadata"]["uid"] for pod in waits.pods(space.kubectl, name, namespace=space.namespace)}

    with traffic.steady(space.base_url(name)) as tally:
        space.apply(manifests.example(replicas=1, engine={"maxNumSeqs": 7}))
        waits.until(
            lambda: (space.kubectl.get("llm", name, namespace=space.namespace) or {})["status"]["currentRevision"],
            accept=lambda revision: revision != before["status"]["currentRevision"],
            what="the new revision is current",
            timeout_seconds=180,
        )
        waits.settled(space.kubectl, name, namespace=space.namespace, replicas=1, timeout_seconds=180)

    assert dict(tally.failures) == {}
    new_pods = {pod["metadata"]["uid"] for pod in waits.pods(space.kubectl, name, namespace=space.namespace)}
    assert len(new_pods) == 1
    assert not old_pods & new_pods


def test_a_revision_that_never_gets_ready_leaves_the_old_one_serving_and_says_so(space: Space) -> None:
    name = space.apply(manifests.example(replicas=1))
    waits.settled(space.kubectl, name, namespace=space.namespace, replicas=1)
    url = space.base_url(name)

    space.apply(manifests.example(replicas=1, model={"source": "pvc://models/no-such-model"}))
    degraded = waits.condition(
        space.kubectl, name, namespace=space.namespace, expected=("Degraded", "True", "ModelNotFound")
    )

    assert "no-such-model" in degraded["message"]
    ready = waits.conditions(space.kubectl, name, namespace=space.namespace)["Ready"]
    assert ready["status"] == "True"
    with traffic.client(url) as openai:
        assert "Paris" in traffic.answer(openai, question="Please tell me the capital of France in one sentence.")

    space.apply(manifests.example(replicas=1))
    model = waits.settled(space.kubectl, name, namespace=space.namespace, replicas=1)
    assert "Degraded" not in {item["type"] for item in model["status"]["conditions"]}
