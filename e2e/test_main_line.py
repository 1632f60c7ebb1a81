"""The main job on a real cluster: apply, Ready, an answer through the model's own URL; delete leaves nothing."""

from __future__ import annotations

import pytest

from e2e import demo, manifests, product, traffic, waits
from e2e.conftest import Space

pytestmark = pytest.mark.cluster

CHILD_KINDS = "deploy,rs,pods,svc,sa,cm,pdb,controllerrevisions"


def test_the_example_becomes_ready_and_answers_the_openai_client_and_a_pod_in_the_cluster(space: Space) -> None:
    name = space.apply(manifests.example())

    waits.ready(space.kubectl, name, namespace=space.namespace)

    with traffic.client(space.base_url(name)) as openai:
        assert "Paris" in traffic.answer(openai, question="Please tell me the capital of France in one sentence.")
        assert [model.id for model in openai.models.list().data] == [name]
    url = f"http://{name}.{space.namespace}/v1"
    with product.client_pod(space.fleet, namespace=space.namespace) as python:
        said = space.kubectl.run(*python, demo.ASK.read_text(encoding="utf-8"), url, demo.QUESTION)
    assert "Paris" in said
    status = (space.kubectl.get("llm", name, namespace=space.namespace) or {})["status"]
    assert status["url"] == url
    assert status["readyReplicas"] == 1


def test_the_example_has_at_most_eight_lines_under_spec() -> None:
    text = manifests.EXAMPLE.read_text(encoding="utf-8")
    under_spec = text.split("\nspec:\n")[1].strip("\n").splitlines()
    assert len(under_spec) <= 8


def test_delete_leaves_nothing_behind_even_when_the_operator_is_gone(space: Space) -> None:
    name = space.apply(manifests.example())
    waits.ready(space.kubectl, name, namespace=space.namespace)
    space.fleet.scale_operator(0)
    try:
        waits.until(
            lambda: space.kubectl.list("pods", namespace=product.SYSTEM_NAMESPACE),
            accept=lambda found: not found,
            what="the operator is gone",
        )
        space.kubectl.run("delete", "llm", name, "-n", space.namespace, "--wait=true")
        left = waits.until(
            lambda: [
                f"{item['kind']}/{item['metadata']['name']}"
                for item in space.kubectl.list(
                    CHILD_KINDS, namespace=space.namespace, selector=f"modelfleet.dev/model={name}"
                )
            ],
            accept=lambda found: not found,
            what="no child is left",
            timeout_seconds=90,
        )
        assert left == []
    finally:
        space.fleet.scale_operator(1)
        space.fleet.wait_for_operator()
