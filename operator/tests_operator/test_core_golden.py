"""Whole-object equality of everything rendered for a spec. `--update-golden` rewrites the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from modelfleet_operator.plan import decide

from tests_operator import builders

GOLDEN = Path(__file__).parent / "golden"

FULL: dict[str, Any] = {
    "model": {"source": "pvc://models/llama/8b", "name": "llama"},
    "replicas": 2,
    "engine": {
        "maxModelLen": 4096,
        "maxNumSeqs": 16,
        "maxNumBatchedTokens": 256,
        "dtype": "bfloat16",
        "prefixCaching": False,
        "itlTargetMilliseconds": 50,
        "env": [{"name": "OMP_NUM_THREADS", "value": "2"}, {"name": "EMPTY", "value": ""}],
    },
    "resources": {"requests": {"cpu": "1000m", "memory": "2048Mi"}, "limits": {"memory": "4Gi"}},
    "placement": {
        "gpu": {"product": "NVIDIA-H200"},
        "nodeSelector": {"zone": "a"},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {
            "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    # Empty selects every pod: it must not be dropped.
                    {"topologyKey": "kubernetes.io/hostname", "labelSelector": {}}
                ]
            }
        },
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
        "schedulerName": "own",
    },
    "rollout": {"drainTimeoutSeconds": 60, "progressDeadlineSeconds": 120},
    "imagePullSecrets": [{"name": "registry"}],
    "podTemplate": {
        "metadata": {"annotations": {"team": "search"}},
        "spec": {"containers": [{"name": "engine", "env": [{"name": "OMP_NUM_THREADS", "value": "4"}]}]},
    },
    "restartedAt": "2026-01-01T00:00:00Z",
}
HUB: dict[str, Any] = {
    "model": {
        "source": "hf://org/tiny-model@main",
        "tokenSecretRef": {"name": "hub", "key": "token"},
    },
    "engine": {"env": [{"name": "HF_ENDPOINT", "value": "http://hub.local"}, {"name": "LOG", "value": "1"}]},
    "image": "example/engine:2",
}


@pytest.mark.parametrize(
    ("name", "spec"),
    [("minimal", builders.SPEC), ("full", FULL), ("hub", HUB)],
)
def test_the_children_of_a_spec_are_exactly_the_golden_ones(
    name: str, spec: dict[str, Any], pytestconfig: pytest.Config
) -> None:
    plan = decide(builders.observed(spec), settings=builders.SETTINGS, now=builders.NOW)
    rendered = yaml.safe_dump_all([*plan.apply_first, *plan.apply], sort_keys=True)
    path = GOLDEN / f"{name}.yaml"
    if pytestconfig.getoption("--update-golden"):
        path.write_text(rendered, encoding="utf-8")
    assert rendered == path.read_text(encoding="utf-8")
    assert plan.delete == ()
