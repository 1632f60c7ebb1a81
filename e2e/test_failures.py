"""What goes wrong shows its reason within seconds, and mends itself when the cause is removed."""

from __future__ import annotations

import json

import pytest

from e2e import manifests, traffic, waits
from e2e.conftest import Space
from e2e.kubectl import Manifest

pytestmark = pytest.mark.cluster

NO_MODEL = manifests.example(model={"source": "pvc://models/no-such-model"})
TOO_LARGE = manifests.example(resources={"requests": {"cpu": "512"}})
BAD_IMAGE = manifests.example(image="modelfleet/no-such-image:none")
NO_MEMORY = manifests.example(resources={"limits": {"memory": "160Mi"}})
NO_CLAIM = manifests.example(model={"source": "pvc://no-such-claim/model"})


@pytest.mark.parametrize(
    ("manifest", "reason", "words"),
    [
        pytest.param(NO_MODEL, "ModelNotFound", "no-such-model", id="a wrong model path"),
        pytest.param(TOO_LARGE, "Unschedulable", "Insufficient cpu", id="a request no node has"),
        pytest.param(BAD_IMAGE, "ImagePullBackOff", "no-such-image", id="an image that does not exist"),
        pytest.param(NO_MEMORY, "OOMKilled", "memory", id="a memory limit below what the model needs"),
        pytest.param(NO_CLAIM, "Unschedulable", "no-such-claim", id="a claim that does not exist"),
    ],
)
def test_the_reason_is_shown_and_the_model_recovers_when_the_cause_is_removed(
    space: Space, manifest: Manifest, reason: str, words: str
) -> None:
    name = space.apply(manifest)

    shown = waits.condition(
        space.kubectl, name, namespace=space.namespace, expected=("Ready", "False", reason), timeout_seconds=90
    )
    assert words in shown["message"], shown["message"]
    line = space.kubectl.run("get", "llm", name, "-n", space.namespace, "--no-headers")
    assert reason in line

    space.apply(manifests.example())
    waits.ready(space.kubectl, name, namespace=space.namespace)
    waits.settled(space.kubectl, name, namespace=space.namespace, replicas=1)


# Signal 9 to every process of one container, from outside it: from inside, the kernel protects PID 1.
KILL = """
import os, pathlib, signal, sys
killed = 0
for entry in pathlib.Path("/proc").iterdir():
    if entry.name.isdigit() and sys.argv[1] in (entry / "cgroup").read_text():
        os.kill(int(entry.name), signal.SIGKILL)
        killed += 1
print(killed)
"""


def kill_engine(space: Space, pod: Manifest) -> None:
    """SIGKILL for the engine of `pod`, sent by a pod that sees the node's processes."""
    container_id = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
    container = {
        "name": "killer",
        "image": space.fleet.control_image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", KILL, container_id],
        "securityContext": {"runAsUser": 0, "privileged": True},
    }
    spec = {"hostPID": True, "nodeName": pod["spec"]["nodeName"], "containers": [container]}
    overrides = json.dumps({"apiVersion": "v1", "spec": spec})
    where = ("-n", space.namespace)
    image = f"--image={space.fleet.control_image}"
    space.kubectl.run("run", "killer", *where, image, "--restart=Never", f"--overrides={overrides}")
    done = "--for=jsonpath={.status.phase}=Succeeded"
    space.kubectl.run("wait", "pod/killer", *where, done, "--timeout=30s")
    assert int(space.kubectl.run("logs", "killer", *where)) >= 1


def template_with_map(config_map: str) -> Manifest:
    """A podTemplate that mounts a ConfigMap into the engine."""
    mount = {"name": "extra", "mountPath": "/extra"}
    volume = {"name": "extra", "configMap": {"name": config_map}}
    return {"spec": {"volumes": [volume], "containers": [{"name": "engine", "volumeMounts": [mount]}]}}


def test_a_volume_that_cannot_be_mounted_is_named(space: Space) -> None:
    space.kubectl.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "other"}, "data": {"key": "value"}},
        namespace=space.namespace,
    )
    name = space.apply(manifests.example(podTemplate=template_with_map("no-such-map")))

    shown = waits.condition(
        space.kubectl,
        name,
        namespace=space.namespace,
        expected=("Ready", "False", "VolumeNotMounted"),
        timeout_seconds=90,
    )
    assert "no-such-map" in shown["message"]

    space.apply(manifests.example(podTemplate=template_with_map("other")))
    waits.ready(space.kubectl, name, namespace=space.namespace)


def test_an_engine_killed_by_signal_9_shows_it_and_comes_back_by_itself(space: Space) -> None:
    name = space.apply(manifests.example())
    waits.settled(space.kubectl, name, namespace=space.namespace, replicas=1)
    (pod,) = waits.pods(space.kubectl, name, namespace=space.namespace)

    kill_engine(space, pod)

    waits.condition(
        space.kubectl, name, namespace=space.namespace, expected=("Ready", "False", None), timeout_seconds=30
    )
    waits.ready(space.kubectl, name, namespace=space.namespace)
    (after,) = waits.pods(space.kubectl, name, namespace=space.namespace)
    assert after["metadata"]["uid"] == pod["metadata"]["uid"]
    assert after["status"]["containerStatuses"][0]["restartCount"] == 1
    assert after["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 137
    with traffic.client(space.base_url(name)) as openai:
        assert "Paris" in traffic.answer(openai, question="Please tell me the capital of France in one sentence.")
