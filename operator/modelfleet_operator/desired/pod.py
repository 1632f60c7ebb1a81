"""The engine's pod template, before a revision's name is stamped on it. PURE.

Restricted pod security throughout; the probes follow the engine's contract: the port opens before the model is
loaded, /health is alive while it loads, /ready only when it serves.
"""

from __future__ import annotations

from typing import Any

from modelfleet_api import names
from modelfleet_api.core_types import dump
from modelfleet_api.engine_config import EngineConfig
from modelfleet_api.llmdeployment import LLMDeploymentSpec, Placement

from modelfleet_operator.canonical import drop_empty
from modelfleet_operator.desired import sources
from modelfleet_operator.desired.common import child_labels, selector_labels
from modelfleet_operator.desired.normalise import normalise_pod_spec
from modelfleet_operator.errors import SpecError
from modelfleet_operator.merge import merge_pod_template
from modelfleet_operator.state import OperatorSettings, Resource

ANNOTATION_RESTARTED_AT = f"{names.GROUP}/restarted-at"
GPU_PRODUCT_LABEL = "nvidia.com/gpu.product"
# Importing torch on a busy two-core node has taken 40 s; the port opens after that.
STARTUP_SECONDS = 300
PROBE_TIMEOUT_SECONDS = 10

RESTRICTED_CONTAINER = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


def desired_pod_template(resource: Resource, spec: LLMDeploymentSpec, *, settings: OperatorSettings) -> dict[str, Any]:
    """The rendered template with the user's podTemplate merged in. SpecError where that cannot be."""
    annotations = {}
    if spec.restarted_at is not None:
        annotations[ANNOTATION_RESTARTED_AT] = spec.restarted_at.isoformat()
    template: dict[str, Any] = {
        "metadata": {"labels": child_labels(resource) | selector_labels(resource), "annotations": annotations},
        "spec": _pod_spec(resource, spec, settings=settings),
    }
    merged = merge_pod_template(template, spec.pod_template) if spec.pod_template else template
    cleaned: dict[str, Any] = drop_empty({**merged, "spec": normalise_pod_spec(merged["spec"])})
    return cleaned


def desired_engine_config(resource: Resource, spec: LLMDeploymentSpec) -> EngineConfig:
    """What the engine process is told."""
    engine = spec.engine
    given = {
        "max_model_len": None if engine.max_model_len == "auto" else engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "itl_target_milliseconds": engine.itl_target_milliseconds,
    }
    return EngineConfig(
        model_path=sources.model_source(spec).path,
        served_model_name=spec.model.name or resource.name,
        canonical_id=names.canonical_id(name=resource.name, namespace=resource.namespace),
        device="cpu" if _gpu_count(spec) == 0 else "cuda",
        dtype=engine.dtype,
        prefix_caching=engine.prefix_caching,
        tensor_parallel=spec.parallelism.tensor,
        port=names.ENGINE_PORT,
        drain_timeout_seconds=spec.rollout.drain_timeout_seconds,
        **{key: value for key, value in given.items() if value is not None},
    )


def engine_image(spec: LLMDeploymentSpec, *, settings: OperatorSettings) -> str:
    """The user's image, else the operator's for the device. SpecError where there is none for a GPU."""
    if spec.image is not None:
        return spec.image
    if _gpu_count(spec) == 0:
        return settings.engine_image
    if settings.engine_gpu_image is None:
        raise SpecError("placement.gpu needs an engine image for GPUs: set spec.image, or engine.gpuImage of the chart")
    return settings.engine_gpu_image


def _gpu_count(spec: LLMDeploymentSpec) -> int:
    return spec.parallelism.tensor if spec.placement is not None and spec.placement.gpu is not None else 0


def _pod_spec(resource: Resource, spec: LLMDeploymentSpec, *, settings: OperatorSettings) -> dict[str, Any]:
    source = sources.model_source(spec)
    pod: dict[str, Any] = {
        "serviceAccountName": resource.name,
        "automountServiceAccountToken": False,
        # Without this every Service of the namespace becomes environment variables of the engine.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": names.termination_grace_period_seconds(
            drain_timeout_seconds=spec.rollout.drain_timeout_seconds
        ),
        "readinessGates": [{"conditionType": names.READINESS_GATE_ROUTABLE}],
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "imagePullSecrets": [dump(item) for item in spec.image_pull_secrets or []],
        "initContainers": _init_containers(spec, source=source, settings=settings),
        "containers": [_engine_container(spec, source=source, settings=settings)],
        "volumes": [
            {"name": names.MODEL_VOLUME, **source.volume},
            {"name": names.SCRATCH_VOLUME, "emptyDir": {}},
        ],
    }
    return pod | _placement(resource, spec.placement)


def _engine_container(
    spec: LLMDeploymentSpec, *, source: sources.ModelSource, settings: OperatorSettings
) -> dict[str, Any]:
    return {
        "name": names.ENGINE_CONTAINER,
        "image": engine_image(spec, settings=settings),
        "imagePullPolicy": settings.engine_pull_policy,
        "args": ["serve", "--config", f"{names.CONFIG_MOUNT_PATH}/{names.CONFIG_KEY}"],
        "ports": [{"name": names.ENGINE_PORT_NAME, "containerPort": names.ENGINE_PORT, "protocol": "TCP"}],
        "env": [dump(item) for item in spec.engine.env or []],
        "resources": _resources(spec),
        "startupProbe": _probe("/health", period_seconds=2, failures=STARTUP_SECONDS // 2),
        "readinessProbe": _probe("/ready", period_seconds=2, failures=3),
        "livenessProbe": _probe("/health", period_seconds=10, failures=6),
        "lifecycle": {"preStop": {"sleep": {"seconds": names.PRE_STOP_SECONDS}}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": RESTRICTED_CONTAINER,
        "volumeMounts": [
            {"name": names.CONFIG_VOLUME, "mountPath": names.CONFIG_MOUNT_PATH, "readOnly": True},
            {"name": names.MODEL_VOLUME, "mountPath": names.MODEL_MOUNT_PATH, "readOnly": True},
            {"name": names.SCRATCH_VOLUME, "mountPath": "/tmp"},
        ],
    }


def _init_containers(
    spec: LLMDeploymentSpec, *, source: sources.ModelSource, settings: OperatorSettings
) -> list[dict[str, Any]]:
    if source.hub_source is None:
        return []
    container = {
        "name": names.FETCH_CONTAINER,
        "image": engine_image(spec, settings=settings),
        "imagePullPolicy": settings.engine_pull_policy,
        "args": ["fetch", "--source", source.hub_source, "--dest", source.path],
        "env": sources.fetch_environment(spec),
        # As much as the engine gets, which costs nothing: a quota refuses pods with a container that names none.
        "resources": dump(spec.resources) if spec.resources is not None else {},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": RESTRICTED_CONTAINER,
        "volumeMounts": [
            {"name": names.MODEL_VOLUME, "mountPath": names.MODEL_MOUNT_PATH},
            {"name": names.SCRATCH_VOLUME, "mountPath": "/tmp"},
        ],
    }
    return [container]


def _resources(spec: LLMDeploymentSpec) -> dict[str, Any]:
    """The user's CPU and memory, and tensor x 1 GPUs where a GPU is asked for."""
    given = dump(spec.resources) if spec.resources is not None else {}
    parts = {
        kind: {key: str(value) for key, value in (given.get(kind) or {}).items()} for kind in ("requests", "limits")
    }
    if spec.placement is not None and spec.placement.gpu is not None:
        for part in parts.values():
            part[spec.placement.gpu.resource_name] = str(_gpu_count(spec))
    return parts


def _placement(resource: Resource, placement: Placement | None) -> dict[str, Any]:
    if placement is None:
        return {}
    selector = dict(placement.node_selector or {})
    if placement.gpu is not None and placement.gpu.product is not None:
        selector[GPU_PRODUCT_LABEL] = placement.gpu.product
    return {
        "nodeSelector": selector,
        "tolerations": [dump(item) for item in placement.tolerations or []],
        "affinity": placement.affinity,
        # Without a selector a constraint counts no pods at all; this model's replicas are what is meant.
        "topologySpreadConstraints": [
            {"labelSelector": {"matchLabels": selector_labels(resource)}} | dump(item)
            for item in placement.topology_spread_constraints or []
        ],
        "priorityClassName": placement.priority_class_name,
        "runtimeClassName": placement.runtime_class_name,
        "schedulerName": placement.scheduler_name,
    }


def _probe(path: str, *, period_seconds: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": names.ENGINE_PORT_NAME, "scheme": "HTTP"},
        "periodSeconds": period_seconds,
        "timeoutSeconds": PROBE_TIMEOUT_SECONDS,
        "failureThreshold": failures,
    }
