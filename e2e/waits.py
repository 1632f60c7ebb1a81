"""Waiting for the world to become as a test expects, with the last thing seen in the message when it does not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from e2e.kubectl import Kubectl, Manifest

T = TypeVar("T")


def until(read: Callable[[], T], *, accept: Callable[[T], bool], what: str, timeout_seconds: float = 60.0) -> T:
    """Polls `read` until `accept` holds and returns that value; AssertionError with the last value otherwise."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        value = read()
        if accept(value):
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not so after {timeout_seconds:.0f} s; last seen: {value}")
        time.sleep(0.2)


def conditions(kubectl: Kubectl, name: str, *, namespace: str) -> dict[str, Manifest]:
    """The model's conditions by type, only those that speak of its newest generation."""
    model = kubectl.get("llm", name, namespace=namespace) or {}
    generation = model.get("metadata", {}).get("generation")
    listed: list[Manifest] = model.get("status", {}).get("conditions", [])
    return {item["type"]: item for item in listed if item.get("observedGeneration") == generation}


def condition(
    kubectl: Kubectl,
    name: str,
    *,
    namespace: str,
    expected: tuple[str, str, str | None],
    timeout_seconds: float = 60.0,
) -> Manifest:
    """Waits for `expected` = (type, status, reason or None for any) and returns the condition."""
    kind, status, reason = expected

    def holds(found: dict[str, Manifest]) -> bool:
        item = found.get(kind, {})
        return item.get("status") == status and reason in (None, item.get("reason"))

    found = until(
        lambda: conditions(kubectl, name, namespace=namespace),
        accept=holds,
        what=f"{name}: {kind}={status} {reason or ''}",
        timeout_seconds=timeout_seconds,
    )
    return found[kind]


def ready(kubectl: Kubectl, name: str, *, namespace: str, timeout_seconds: float = 120.0) -> Manifest:
    """Waits until the model's URL answers for the newest spec."""
    return condition(
        kubectl, name, namespace=namespace, expected=("Ready", "True", None), timeout_seconds=timeout_seconds
    )


def settled(kubectl: Kubectl, name: str, *, namespace: str, replicas: int, timeout_seconds: float = 120.0) -> Manifest:
    """Waits until exactly `replicas` pods exist and are ready, and no rollout is under way; returns the model."""

    def read() -> tuple[Manifest, int]:
        model = kubectl.get("llm", name, namespace=namespace) or {}
        return model, len(pods(kubectl, name, namespace=namespace))

    def holds(seen: tuple[Manifest, int]) -> bool:
        model, pod_count = seen
        status: dict[str, Any] = model.get("status", {})
        types = {item["type"] for item in status.get("conditions", [])}
        return (
            status.get("observedGeneration") == model.get("metadata", {}).get("generation")
            and status.get("readyReplicas", 0) == replicas
            and status.get("currentRevision") == status.get("updateRevision")
            and "Reconciling" not in types
            and pod_count == replicas
        )

    what = f"{name}: {replicas} replicas ready and nothing else"
    return until(read, accept=holds, what=what, timeout_seconds=timeout_seconds)[0]


def pods(kubectl: Kubectl, name: str, *, namespace: str) -> list[Manifest]:
    """The model's pods, terminating ones included."""
    return list(kubectl.list("pods", namespace=namespace, selector=f"modelfleet.dev/model={name}"))
