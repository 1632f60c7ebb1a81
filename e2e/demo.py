"""`make demo`: from nothing to an answer of a real model on a real cluster, with the time of each phase.

up | down | chat | scale N | logs. Every phase skips what is already done, so a second run takes seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from e2e import demo_model, images, product
from e2e.cluster.paths import REPOSITORY
from e2e.cluster.shell import CommandError, UserError, wait_until
from e2e.cluster.toolchain import build_all

EXAMPLE = REPOSITORY / "examples" / "smollm2.yaml"
MODEL = "smollm2"
NAMESPACE = "default"
URL = f"http://{MODEL}.{NAMESPACE}/v1"
# Not "What is …?": there this model of 135M parameters prefers its answer by 0.1 nats, less than bfloat16's rounding.
QUESTION = "Please tell me the capital of France in one sentence."
READY_TIMEOUT_SECONDS = 180
ASK = Path(__file__).parent / "ask.py"


@dataclass
class Phases:
    """Wall seconds of each phase, printed as they end and once more as a table."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times one phase."""
        print(f"==> {name}", flush=True)
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started

    def table(self) -> str:
        """One line a phase, and the sum."""
        lines = [f"  {name:<44} {seconds:7.1f} s" for name, seconds in self.seconds.items()]
        return "\n".join([*lines, f"  {'total':<44} {sum(self.seconds.values()):7.1f} s"])


def up() -> None:
    """The main job."""
    phases = Phases()
    with phases.phase("binaries (Kubernetes, CoreDNS, Helm)"):
        build_all()
    with phases.phase("images (control, engine)"):
        for name in product.IMAGES:
            images.build(name)
    with phases.phase("demo model (SmolLM2-135M-Instruct)"):
        demo_model.demo_model_path()
    with phases.phase("cluster"):
        product.cluster_command("up")
    with phases.phase("images into the cluster"):
        product.load_images()
    fleet = product.connect()
    with phases.phase("helm install modelfleet"):
        fleet.install()
    with phases.phase("kubectl apply and Ready"):
        fleet.provide_model(NAMESPACE)
        fleet.kubectl.run("apply", "-n", NAMESPACE, "-f", str(EXAMPLE))
        wait_ready(fleet)
    print(fleet.kubectl.run("get", "llm", "-n", NAMESPACE))
    with phases.phase("ask from inside the cluster"):
        print(f"{URL}  <-  {QUESTION}", flush=True)
        ask(fleet, QUESTION)
    print(f"\n{phases.table()}\n")
    print(next_steps(fleet))


def wait_ready(fleet: product.Product) -> None:
    """Waits for Ready=True of the newest generation, and prints each new reason while it waits."""
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    said = ""
    while time.monotonic() < deadline:
        ready, words = readiness(fleet)
        if ready:
            return
        if words != said:
            print(f"    {words}", flush=True)
            said = words
        time.sleep(0.5)
    raise UserError(f"{MODEL} is not Ready after {READY_TIMEOUT_SECONDS} s: {said}")


def readiness(fleet: product.Product) -> tuple[bool, str]:
    """Whether the model is Ready for its newest generation, and the condition in words."""
    model = fleet.kubectl.get("llm", MODEL, namespace=NAMESPACE) or {}
    generation = model.get("metadata", {}).get("generation")
    for condition in model.get("status", {}).get("conditions", []):
        if condition["type"] == "Ready":
            current = condition.get("observedGeneration") == generation
            words = f"Ready={condition['status']} {condition['reason']}: {condition['message']}"
            return condition["status"] == "True" and current, words
    return False, "waiting for the operator"


def ask(fleet: product.Product, *arguments: str) -> None:
    """Runs the client in a pod; without a question it is a chat on this terminal."""
    with product.client_pod(fleet, namespace=NAMESPACE) as python:
        code = fleet.kubectl.interactive(*python, ASK.read_text(encoding="utf-8"), URL, *arguments)
    if code != 0:
        raise CommandError(f"the client ended with exit code {code}")


def next_steps(fleet: product.Product) -> str:
    """What to type next."""
    return "\n".join(
        [
            "What to type next:",
            "  make chat          talk to the model, from inside the cluster",
            "  make scale N=3     three replicas (kubectl scale llm/smollm2 --replicas=3)",
            "  make logs          follow the engines' logs",
            "  make demo-down     remove everything",
            f"  export KUBECONFIG={fleet.kubectl.kubeconfig}",
        ]
    )


def scale(replicas: int) -> None:
    """Scales the demo model as a user would and shows the object."""
    fleet = product.connect()
    patch = json.dumps({"spec": {"replicas": replicas}})
    fleet.kubectl.run("patch", "llm", MODEL, "-n", NAMESPACE, "--type=merge", "-p", patch)
    wait_until(
        lambda: _replicas(fleet) == {"desiredReplicas": replicas, "readyReplicas": replicas},
        what=f"{replicas} replicas are ready",
        timeout_seconds=READY_TIMEOUT_SECONDS,
    )
    print(fleet.kubectl.run("get", "llm", "-n", NAMESPACE))


def _replicas(fleet: product.Product) -> dict[str, int]:
    status = (fleet.kubectl.get("llm", MODEL, namespace=NAMESPACE) or {}).get("status", {})
    return {key: status.get(key, 0) for key in ("desiredReplicas", "readyReplicas")}


def logs() -> None:
    """Follows the logs of all replicas."""
    selector = f"modelfleet.dev/model={MODEL}"
    product.connect().kubectl.interactive("logs", "-n", NAMESPACE, "-f", "--prefix", "-l", selector, "-c", "engine")


def main() -> int:
    """Command line of the demo; a person's mistake is one line, exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m e2e.demo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("up", "down", "chat", "logs"):
        commands.add_parser(name)
    commands.add_parser("scale").add_argument("replicas", type=int)
    arguments = parser.parse_args()
    try:
        match arguments.command:
            case "up":
                up()
            case "down":
                product.cluster_command("down")
            case "chat":
                ask(product.connect())
            case "scale":
                scale(arguments.replicas)
            case _:
                logs()
    except (UserError, CommandError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
