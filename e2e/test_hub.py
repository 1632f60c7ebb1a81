"""A model from a hub inside the cluster: the init container fetches it, and says why when it may not."""

from __future__ import annotations

from typing import Any

import pytest

from e2e import demo_model, manifests, product, traffic, waits
from e2e.cluster.paths import REPOSITORY
from e2e.conftest import Space

pytestmark = pytest.mark.cluster

HUB_SERVER = REPOSITORY / "engine-image" / "tests_engine" / "hub_server.py"
TOKEN = "hf_e2e"
# Serves the demo model's directory as `org/name`, to those who know the token. The large files' host has another
# name, as on the Hub: a client follows a redirect to the same host blindly and would miss the commit's header.
SERVE = f"""
import pathlib
files = {{p.name: p.read_bytes() for p in pathlib.Path("/models/{demo_model.MODEL_NAME}").iterdir() if p.suffix}}
async def serve():
    urls = dict(url="http://hub.NAMESPACE", cdn_url="http://hub.NAMESPACE.svc.cluster.local")
    await HubServer(files=files, token="{TOKEN}", host="0.0.0.0", port=8080, **urls).start()
    await asyncio.Event().wait()
asyncio.run(serve())
"""


def start_hub(space: Space) -> None:
    """A pod and a Service `hub` that speak the hub's protocol."""
    source = HUB_SERVER.read_text(encoding="utf-8") + SERVE.replace("NAMESPACE", space.namespace)
    container = {
        "name": "hub",
        "image": space.fleet.control_image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-u", "-c", source],
        "ports": [{"containerPort": 8080}],
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
        "volumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
    }
    volume = {"name": "models", "persistentVolumeClaim": {"claimName": product.MODEL_CLAIM}}
    labels = {"app": "hub"}
    pod: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "hub", "labels": labels},
        "spec": {"containers": [container], "volumes": [volume], "terminationGracePeriodSeconds": 0},
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "hub"},
        "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "hub-token"},
        "stringData": {"token": TOKEN},
    }
    space.kubectl.apply(pod, service, secret, namespace=space.namespace)
    space.kubectl.run("wait", "pod/hub", "-n", space.namespace, "--for=condition=Ready", "--timeout=60s")


def test_a_model_is_fetched_from_the_hub_once_its_token_is_given(space: Space) -> None:
    start_hub(space)
    environment = {"env": [{"name": "HF_ENDPOINT", "value": f"http://hub.{space.namespace}"}]}
    source = "hf://org/name@main"

    name = space.apply(manifests.example(model={"source": source}, engine=environment))
    refused = waits.condition(
        space.kubectl, name, namespace=space.namespace, expected=("ModelCached", "False", "ModelNotFound")
    )
    assert "tokenSecretRef" in refused["message"]

    model = {"source": source, "tokenSecretRef": {"name": "hub-token", "key": "token"}}
    space.apply(manifests.example(model=model, engine=environment))
    waits.ready(space.kubectl, name, namespace=space.namespace)
    waits.condition(space.kubectl, name, namespace=space.namespace, expected=("ModelCached", "True", "ModelCached"))
    with traffic.client(space.base_url(name)) as openai:
        assert "Paris" in traffic.answer(openai, question="Please tell me the capital of France in one sentence.")
