"""Samples of engine, resources and placement: what ends up in the pods."""

from __future__ import annotations

from typing import Any

from tests_api.samples import (
    Sample,
    bad,
    good,
    no_choice,
    no_match,
    too_large,
    too_long,
    too_many,
    too_short,
    too_small,
    unknown,
    wrong_type,
)

SECRET = {"secretKeyRef": {"name": "s", "key": "k"}}
NOT_OURS = "engine.env may not set MODELFLEET_* variables: they belong to the operator"
ONE_VALUE = "an entry of engine.env has either value or valueFrom, not both"
ONE_SOURCE = "valueFrom in engine.env has exactly one of secretKeyRef, configMapKeyRef, fieldRef, resourceFieldRef"
NO_GPU = "GPUs are asked for by placement.gpu and parallelism, not in resources"
SPREAD = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}


def _env(refusal: str, *entries: dict[str, Any], server: str | None = None) -> Sample:
    return bad("spec.engine.env", list(entries), refusal, server)


def _key_selector_samples(member: str) -> tuple[Sample, ...]:
    def entry(**reference: Any) -> dict[str, Any]:
        return {"name": "A", "valueFrom": {member: reference}}

    return (
        good("spec.engine.env", [entry(name="s", key="k", optional=True)]),
        _env("Field required", entry(name="s"), server="Required value"),
        _env("Field required", entry(key="k"), server="Required value"),
        _env("at least 1 character", entry(name="", key="k"), server="at least 1 chars long"),
        _env("at least 1 character", entry(name="s", key=""), server="at least 1 chars long"),
        _env("at most 253 characters", entry(name="s" * 254, key="k"), server="may not be more than 253 bytes"),
        _env("at most 253 characters", entry(name="s", key="k" * 254), server="may not be more than 253 bytes"),
        _env("Input should be a valid boolean", entry(name="s", key="k", optional="no"), server="type boolean"),
    )


ENGINE: tuple[Sample, ...] = (
    good("spec.engine.maxModelLen", "auto"),
    good("spec.engine.maxModelLen", 1),
    good("spec.engine.maxModelLen", 10_485_760),
    too_small("spec.engine.maxModelLen", 0, 1),
    too_large("spec.engine.maxModelLen", 10_485_761, 10_485_760),
    bad("spec.engine.maxModelLen", "4096", "Input should be 'auto'", "should match '^(auto)$'"),
    bad("spec.engine.maxModelLen", True, "Input should be a valid integer", "must be of type integer,string"),
    bad("spec.engine.maxModelLen", 1.5, "Input should be a valid integer", "must be of type integer,string"),
    too_small("spec.engine.maxNumSeqs", 0, 1),
    too_large("spec.engine.maxNumSeqs", 4097, 4096),
    too_small("spec.engine.maxNumBatchedTokens", 0, 1),
    too_large("spec.engine.maxNumBatchedTokens", 1_048_577, 1_048_576),
    good("spec.engine.dtype", "float32"),
    no_choice("spec.engine.dtype", "int4"),
    good("spec.engine.prefixCaching", False),
    bad("spec.engine.prefixCaching", "no", "Input should be a valid boolean", "must be of type boolean"),
    good("spec.engine.itlTargetMilliseconds", 1),
    good("spec.engine.itlTargetMilliseconds", 60_000),
    too_small("spec.engine.itlTargetMilliseconds", 0, 1),
    too_large("spec.engine.itlTargetMilliseconds", 60_001, 60_000),
    bad("spec.engine.itlTargetMilliseconds", 1.5, "Input should be a valid integer", "must be of type integer"),
    unknown("spec.engine.deterministic"),
    unknown("spec.engine.maxNumSequences"),
    good("spec.engine.env", [{"name": "A", "value": ""}, {"name": "B", "valueFrom": SECRET}, {"name": "C"}]),
    _env(NOT_OURS, {"name": "MODELFLEET_X", "value": "1"}),
    _env(ONE_VALUE, {"name": "A", "value": "1", "valueFrom": SECRET}),
    _env(ONE_SOURCE, {"name": "A", "valueFrom": {}}),
    _env(ONE_SOURCE, {"name": "A", "valueFrom": {**SECRET, "fieldRef": {"fieldPath": "metadata.name"}}}),
    _env("Duplicate value", {"name": "A", "value": "1"}, {"name": "A", "value": "2"}),
    _env("Field required", {"value": "1"}, server="Required value"),
    _env("at least 1 character", {"name": ""}, server="at least 1 chars long"),
    _env("at most 253 characters", {"name": "A" * 254}, server="may not be more than 253 bytes"),
    _env("String should match pattern", {"name": "1A"}, server="should match '"),
    _env("at most 32768 characters", {"name": "A", "value": "x" * 32769}, server="may not be more than 32768 bytes"),
    _env("Input should be a valid string", {"name": "A", "value": 1}, server="must be of type string"),
    too_many("spec.engine.env", [{"name": f"A{i}"} for i in range(65)], 64),
    *_key_selector_samples("secretKeyRef"),
    *_key_selector_samples("configMapKeyRef"),
    good(
        "spec.engine.env", [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP", "apiVersion": "v1"}}}]
    ),
    _env(
        "at least 1 character", {"name": "A", "valueFrom": {"fieldRef": {"fieldPath": ""}}}, server="at least 1 chars"
    ),
    _env("Field required", {"name": "A", "valueFrom": {"fieldRef": {"apiVersion": "v1"}}}, server="Required value"),
    _env(
        "at most 253 characters",
        {"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "x" * 254}}},
        server="may not be more than 253 bytes",
    ),
    _env(
        "at most 63 characters",
        {"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "x", "apiVersion": "v" * 64}}},
        server="may not be more than 63 bytes",
    ),
    *(
        _env(refusal, {"name": "A", "valueFrom": {"resourceFieldRef": reference}}, server=server)
        for refusal, server, reference in (
            ("at least 1 character", "at least 1 chars", {"resource": ""}),
            ("at most 63 characters", "may not be more than 63", {"resource": "r" * 64}),
            ("at most 63 characters", "may not be more than 63", {"resource": "r", "containerName": "c" * 64}),
            ("Field required", "Required value", {"containerName": "engine"}),
            ("String should match pattern", "should match '", {"resource": "limits.cpu", "divisor": "one"}),
            ("at most 32 characters", "may not be more than 32", {"resource": "limits.cpu", "divisor": "1" * 33}),
            ("greater than or equal to 0", "greater than or equal to 0", {"resource": "limits.cpu", "divisor": -1}),
        )
    ),
)

RESOURCES: tuple[Sample, ...] = (
    *(
        good("spec.resources.requests", {"cpu": quantity})
        for quantity in (0, 4, "250m", "0.5", "+1", ".5", "1.", "1e3", "1E-3", "2Gi", "3k", "1E")
    ),
    *(
        bad("spec.resources.requests", {"cpu": quantity}, "String should match pattern", "should match '")
        for quantity in ("", "-1", "1 Gi", "1GB", "one", "1e", "0x10", "1Ki ", "1\n")
    ),
    bad("spec.resources.requests", {"cpu": -1}, "greater than or equal to 0"),
    bad("spec.resources.limits", {"cpu": -1}, "greater than or equal to 0"),
    bad("spec.resources.limits", {"cpu": "1GB"}, "String should match pattern", "should match '"),
    bad("spec.resources.requests", {"cpu": "1" * 33}, "at most 32 characters", "may not be more than 32 bytes"),
    bad("spec.resources.requests", {"cpu": 0.5}, "Input should be a valid string", "must be of type integer,string"),
    bad("spec.resources.limits", {"cpu": True}, "Input should be a valid string", "must be of type integer,string"),
    bad("spec.resources.limits", {"cpu": "1" * 33}, "at most 32 characters", "may not be more than 32 bytes"),
    too_many("spec.resources.requests", {f"r{i}": 1 for i in range(17)}, 16),
    too_many("spec.resources.limits", {f"r{i}": 1 for i in range(17)}, 16),
    bad("spec.resources.requests", {"nvidia.com/gpu": 1}, NO_GPU),
    bad("spec.resources.limits", {"nvidia.com/mig-1g.5gb": 1}, NO_GPU),
    bad("spec.resources.limits", {"amd.com/gpu": "1"}, NO_GPU),
    bad("spec.resources.limits", {"gpu.intel.com/i915": 1}, NO_GPU),
    bad("spec.resources.limits", {"habana.ai/gaudi": 1}, NO_GPU),
    good("spec.resources.limits", {"example.com/nvidia.com": 1}),
    unknown("spec.resources.claims"),
)


def _toleration(refusal: str, server: str, **members: Any) -> Sample:
    return bad("spec.placement.tolerations", [members], refusal, server)


def _spread(refusal: str, server: str, **members: Any) -> Sample:
    return bad("spec.placement.topologySpreadConstraints", [{**SPREAD, **members}], refusal, server)


PLACEMENT: tuple[Sample, ...] = (
    good("spec.placement.gpu", {}),
    good("spec.placement.gpu", {"product": "NVIDIA-H100-80GB-HBM3", "resourceName": "nvidia.com/mig-1g.5gb"}),
    unknown("spec.placement.gpu.count"),
    too_short("spec.placement.gpu.product"),
    too_long("spec.placement.gpu.product", "x" * 64, 63),
    no_match("spec.placement.gpu.product", "NVIDIA H100"),
    too_short("spec.placement.gpu.resourceName", 3),
    too_long("spec.placement.gpu.resourceName", "a/" + "x" * 252, 253),
    no_match("spec.placement.gpu.resourceName", "gpu"),
    no_match("spec.placement.gpu.resourceName", "nvidia.com/gpu/more"),
    good("spec.placement.nodeSelector", {"zone": "a"}),
    bad("spec.placement.nodeSelector", {"zone": "a" * 254}, "at most 253 characters", "may not be more than 253 bytes"),
    bad("spec.placement.nodeSelector", {"zone": 1}, "Input should be a valid string", "must be of type string"),
    too_many("spec.placement.nodeSelector", {f"k{i}": "v" for i in range(65)}, 64),
    good("spec.placement.tolerations", [{"operator": "Exists"}, {"key": "gpu", "tolerationSeconds": -1}]),
    _toleration("Input should be 'Exists' or 'Equal'", "Unsupported value", operator="In"),
    _toleration("Input should be 'NoSchedule'", "Unsupported value", effect="Never"),
    _toleration("at most 316 characters", "may not be more than 316", key="k" * 317),
    _toleration("at most 63 characters", "may not be more than 63", value="v" * 64),
    _toleration("Input should be a valid integer", "must be of type integer", tolerationSeconds="5"),
    _toleration("Extra inputs are not permitted", 'unknown field "spec.placement.tolerations[0].keys"', keys="k"),
    too_many("spec.placement.tolerations", [{"key": f"k{i}"} for i in range(65)], 64),
    good("spec.placement.affinity", {"nodeAffinity": {"anything": ["goes", {"here": None}]}}),
    wrong_type("spec.placement.affinity", [], "object"),
    too_many("spec.placement.affinity", {f"k{i}": 1 for i in range(65)}, 64),
    good(
        "spec.placement.topologySpreadConstraints",
        [{**SPREAD, "labelSelector": {"matchLabels": {"a": "b"}}, "matchLabelKeys": ["pod-template-hash"]}],
    ),
    _spread("greater than or equal to 1", "greater than or equal to 1", maxSkew=0),
    _spread("greater than or equal to 1", "greater than or equal to 1", minDomains=0),
    _spread("at least 1 character", "at least 1 chars", topologyKey=""),
    _spread("at most 316 characters", "may not be more than 316", topologyKey="k" * 317),
    _spread("Input should be 'DoNotSchedule'", "Unsupported value", whenUnsatisfiable="Never"),
    _spread("Input should be 'Honor' or 'Ignore'", "Unsupported value", nodeAffinityPolicy="Maybe"),
    _spread("Input should be 'Honor' or 'Ignore'", "Unsupported value", nodeTaintsPolicy="Maybe"),
    _spread("at most 16 items", "must have at most 16 items", matchLabelKeys=[f"k{i}" for i in range(17)]),
    _spread("at most 253 characters", "may not be more than 253", matchLabelKeys=["k" * 254]),
    _spread("at most 64 items", "must have at most 64 items", labelSelector={f"k{i}": 1 for i in range(65)}),
    bad("spec.placement.topologySpreadConstraints", [{"topologyKey": "zone"}], "Field required", "Required value"),
    bad("spec.placement.topologySpreadConstraints", [{"maxSkew": 1}], "Field required", "Required value"),
    too_many("spec.placement.topologySpreadConstraints", [SPREAD] * 17, 16),
    too_long("spec.placement.priorityClassName", "p" * 254, 253),
    too_long("spec.placement.runtimeClassName", "r" * 254, 253),
    too_long("spec.placement.schedulerName", "s" * 254, 253),
    good("spec.placement.schedulerName", "other"),
)

SAMPLES = (*ENGINE, *RESOURCES, *PLACEMENT)
