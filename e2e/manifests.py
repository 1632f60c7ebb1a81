"""LLMDeployments for the e2e tests: the shipped example, with what a test changes."""

from __future__ import annotations

from typing import Any

import yaml

from e2e.cluster.paths import REPOSITORY

EXAMPLE = REPOSITORY / "examples" / "smollm2.yaml"


def example(**spec: Any) -> dict[str, Any]:
    """The shipped example with the given spec fields replaced (camelCase keys; None removes one)."""
    manifest: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    manifest["spec"] = {key: value for key, value in {**manifest["spec"], **spec}.items() if value is not None}
    # Tests delete and roll often: their answers are short, even on a busy machine.
    manifest["spec"].setdefault("rollout", {"drainTimeoutSeconds": 60})
    return manifest
