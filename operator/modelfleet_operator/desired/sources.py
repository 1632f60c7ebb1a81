"""`model.source` -> where the weights are in the pod: volumes, mounts and, for hub models, the init container. PURE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modelfleet_api import names
from modelfleet_api.core_types import dump
from modelfleet_api.llmdeployment import LLMDeploymentSpec

PVC_SCHEME = "pvc://"
HUB_SCHEME = "hf://"
# What the download needs of the user's engine.env: the hub's address, certificates and proxies.
_DOWNLOAD_ENV_PREFIXES = ("HF_", "HUGGINGFACE_", "SSL_", "REQUESTS_", "CURL_")
_DOWNLOAD_ENV = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """`path` is the model's directory in the engine container. Hub models are fetched by an init container."""

    path: str
    volume: dict[str, Any]
    is_read_only: bool
    hub_source: str | None = None


def model_source(spec: LLMDeploymentSpec) -> ModelSource:
    """Where this spec's weights come from; the scheme was checked with the spec."""
    source = spec.model.source
    if source.startswith(PVC_SCHEME):
        claim, _, path = source.removeprefix(PVC_SCHEME).partition("/")
        return ModelSource(
            path=f"{names.MODEL_MOUNT_PATH}/{path}".rstrip("/"),
            volume={"persistentVolumeClaim": {"claimName": claim, "readOnly": True}},
            is_read_only=True,
        )
    repository = source.removeprefix(HUB_SCHEME).partition("@")[0]
    return ModelSource(
        path=f"{names.MODEL_MOUNT_PATH}/{repository.rpartition('/')[2]}",
        volume={"emptyDir": {}},
        is_read_only=False,
        hub_source=source,
    )


def fetch_environment(spec: LLMDeploymentSpec) -> list[dict[str, Any]]:
    """The init container's environment: the hub token and what of engine.env concerns a download."""
    chosen = [
        dump(item)
        for item in spec.engine.env or []
        if item.name.startswith(_DOWNLOAD_ENV_PREFIXES) or item.name in _DOWNLOAD_ENV
    ]
    reference = spec.model.token_secret_ref
    if reference is not None:
        token = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": reference.name, "key": reference.key}}}
        chosen = [item for item in chosen if item["name"] != "HF_TOKEN"] + [token]
    return chosen
