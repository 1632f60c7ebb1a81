"""The gateway on a real cluster: one URL for a model by both of its names, wrong names, and a replica more."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from openai import NotFoundError, OpenAI

from e2e import demo, manifests, product, traffic, waits
from e2e.conftest import Space

pytestmark = pytest.mark.cluster

WITH_GATEWAY = ("--set=gateway.enabled=true", "--set=gateway.anonymous=true")
QUESTION = "Please tell me the capital of France in one sentence."
NAME = "through-gateway"
SERVED_NAME = "tests/SmolLM2-through-gateway"
CLIENTS = 4


@pytest.fixture
def gateway(fleet: product.Product) -> Iterator[OpenAI]:
    """A client of the fleet's URL. The release is as other tests expect it when this one ends, however it ends."""
    fleet.install(*WITH_GATEWAY)
    service = fleet.kubectl.get("service", product.GATEWAY_SERVICE, namespace=product.SYSTEM_NAMESPACE)
    assert service is not None
    with traffic.client(f"http://{service['spec']['clusterIP']}/v1") as openai:
        yield openai
    fleet.install()


def ask(openai: OpenAI, model: str, question: str, *, max_tokens: int = 24) -> str:
    """One whole streamed answer."""
    stream = openai.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=max_tokens,
        temperature=0,
        stream=True,
    )
    chunks = [choice for chunk in stream for choice in chunk.choices]
    assert chunks[-1].finish_reason is not None
    return "".join(choice.delta.content or "" for choice in chunks)


def apply_model(space: Space, *, replicas: int) -> str:
    """The demo model under names that no other test uses; returns its canonical id."""
    source = manifests.example()["spec"]["model"]["source"]
    manifest = manifests.example(replicas=replicas, model={"source": source, "name": SERVED_NAME})
    manifest["metadata"]["name"] = NAME
    space.apply(manifest)
    waits.settled(space.kubectl, NAME, namespace=space.namespace, replicas=replicas, timeout_seconds=180)
    return f"{NAME}.{space.namespace}"


def answered(space: Space) -> Counter[str]:
    """How many requests each engine has answered, by its own count."""
    counts: Counter[str] = Counter()
    for pod in waits.pods(space.kubectl, NAME, namespace=space.namespace):
        name = pod["metadata"]["name"]
        path = f"/api/v1/namespaces/{space.namespace}/pods/{name}:8000/proxy/load"
        counts[name] = json.loads(space.kubectl.run("get", "--raw", path))["counters"]["requests"]
    return counts


def gateway_pods(space: Space) -> set[str]:
    """Their UIDs, those of terminating ones included."""
    selector = "app.kubernetes.io/component=gateway"
    pods = space.kubectl.list("pods", namespace=product.SYSTEM_NAMESPACE, selector=selector)
    return {pod["metadata"]["uid"] for pod in pods}


def test_one_url_answers_by_canonical_id_and_by_served_name_and_names_what_is_near(
    space: Space, gateway: OpenAI
) -> None:
    canonical = apply_model(space, replicas=1)
    listed = waits.until(
        lambda: {model.id for model in gateway.models.list().data},
        accept=lambda names: canonical in names,
        what="the gateway lists the model",
    )
    assert SERVED_NAME in listed

    for model in (canonical, SERVED_NAME):
        assert "Paris" in ask(gateway, model, QUESTION)
    with pytest.raises(NotFoundError, match=canonical) as refused:
        ask(gateway, f"{NAME}s.{space.namespace}", QUESTION)
    assert refused.value.code == "model_not_found"
    assert sum(answered(space).values()) == 2

    with product.client_pod(space.fleet, namespace=space.namespace) as python:
        # By name: the fleet's list may begin with a model of another test that is just being deleted.
        arguments = (demo.ASK.read_text(encoding="utf-8"), product.FLEET_URL, QUESTION, canonical)
        said = space.kubectl.run(*python, *arguments)
    assert "Paris" in said


@contextmanager
def driven(openai: OpenAI, model: str) -> Iterator[list[int]]:
    """Clients that ask one question after another; the list has each client's answers once the block is left.

    A failed request ends its client with the error, which is raised there.
    """
    stop = threading.Event()
    answers: list[int] = []

    def drive(number: int) -> int:
        count = 0
        while not stop.is_set():
            ask(openai, model, f"Count from {number} to {number + count + 5}.")
            count += 1
        return count

    with ThreadPoolExecutor(max_workers=CLIENTS) as pool:
        drives = [pool.submit(drive, number) for number in range(CLIENTS)]
        try:
            yield answers
        finally:
            stop.set()
        answers.extend(each.result() for each in drives)


def test_both_pods_get_requests_after_scaling_from_one_to_two_and_no_answer_is_lost(
    space: Space, gateway: OpenAI
) -> None:
    canonical = apply_model(space, replicas=1)
    assert "Paris" in ask(gateway, canonical, QUESTION)

    with driven(gateway, canonical) as answers:
        space.kubectl.run("scale", f"llm/{NAME}", "-n", space.namespace, "--replicas=2")
        waits.settled(space.kubectl, NAME, namespace=space.namespace, replicas=2, timeout_seconds=180)
        waits.until(
            lambda: answered(space),
            accept=lambda counts: len(counts) == 2 and min(counts.values()) >= CLIENTS,
            what="both engines answer",
        )

    assert sum(answered(space).values()) == sum(answers) + 1


def test_a_restart_of_the_gateway_under_traffic_loses_no_answer(space: Space, gateway: OpenAI) -> None:
    canonical = apply_model(space, replicas=1)
    deployment = ("deployment/modelfleet-gateway", "-n", product.SYSTEM_NAMESPACE)
    before = gateway_pods(space)

    with driven(gateway, canonical) as answers:
        space.kubectl.run("rollout", "restart", *deployment)
        space.kubectl.run("rollout", "status", *deployment, "--timeout=120s", timeout_seconds=130)
        waits.until(
            lambda: gateway_pods(space),
            accept=lambda pods: len(pods) == len(before) and not pods & before,
            what="the old gateways are gone",
        )

    assert len(answers) == CLIENTS
    assert min(answers) > 0
