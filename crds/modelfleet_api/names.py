"""Every name that more than one part must agree on: group, labels, annotations, ports, child names.

A name ships once: nothing here may change after a release.
"""

from __future__ import annotations

GROUP = "modelfleet.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "LLMDeployment"
PLURAL = "llmdeployments"
SINGULAR = "llmdeployment"
SHORT_NAME = "llm"
ROUTE_KIND = "ModelRoute"
ROUTE_PLURAL = "modelroutes"
TENANT_KIND = "Tenant"
TENANT_PLURAL = "tenants"

FIELD_MANAGER = "modelfleet-operator"

LABEL_NAME = "app.kubernetes.io/name"
LABEL_INSTANCE = "app.kubernetes.io/instance"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGED_BY = "modelfleet"
# `modelfleet.dev/model` is the LLMDeployment's name; every child carries it and is watched by it.
LABEL_MODEL = f"{GROUP}/model"
LABEL_REVISION = f"{GROUP}/revision"
LABEL_ROLE = f"{GROUP}/role"
ROLE_ENGINE = "engine"

# Set by the operator on objects it wrote: a digest of what it meant, so that most passes compare one string.
ANNOTATION_DESIRED_HASH = f"{GROUP}/desired-hash"

# On a pod, set by the operator, whatever its value: gateways send it nothing new. Taken away, they do again.
ANNOTATION_DRAINING = f"{GROUP}/draining"

READINESS_GATE_ROUTABLE = f"{GROUP}/routable"

ENGINE_CONTAINER = "engine"
FETCH_CONTAINER = "fetch-model"
ENGINE_PORT = 8000
ENGINE_PORT_NAME = "http"
SERVICE_PORT = 80
CONFIG_VOLUME = "engine-config"
CONFIG_MOUNT_PATH = "/etc/modelfleet"
CONFIG_KEY = "engine.json"
MODEL_VOLUME = "model"
MODEL_MOUNT_PATH = "/models"
SCRATCH_VOLUME = "scratch"

MAX_NAME_LENGTH = 40
NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"

# contracts.md "drain": preStop, then the engine still accepts, then what runs is finished, then a margin.
PRE_STOP_SECONDS = 5
ACCEPT_AFTER_SIGTERM_SECONDS = 5
TERMINATION_MARGIN_SECONDS = 10


def canonical_id(*, name: str, namespace: str) -> str:
    """The model id that always works in requests: `<name>.<namespace>`."""
    return f"{name}.{namespace}"


def model_url(*, name: str, namespace: str) -> str:
    """The model's own OpenAI base URL inside the cluster."""
    return f"http://{name}.{namespace}/v1"


def revision_name(*, name: str, revision_hash: str) -> str:
    """Name of the Deployment, ConfigMap and ControllerRevision of one revision: `<name>-<hash>`."""
    return f"{name}-{revision_hash}"


def termination_grace_period_seconds(*, drain_timeout_seconds: int) -> int:
    """5 (preStop) + 5 (still accepting) + drain + 10 (margin), as in the drain protocol."""
    return PRE_STOP_SECONDS + ACCEPT_AFTER_SIGTERM_SECONDS + drain_timeout_seconds + TERMINATION_MARGIN_SECONDS
