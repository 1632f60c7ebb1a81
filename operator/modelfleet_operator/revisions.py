"""Revisions: the rendered pod template and EngineConfig of a spec, pinned in a ControllerRevision. PURE.

A spec that was rendered before keeps its rendering, whatever this operator's version or settings would render
today: an operator upgrade restarts nobody. Only a changed spec (restartedAt included) renders anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelfleet_api import names
from modelfleet_api.llmdeployment import LLMDeploymentSpec

from modelfleet_operator.canonical import digest
from modelfleet_operator.desired.common import child_metadata, selector_labels
from modelfleet_operator.desired.pod import desired_engine_config, desired_pod_template
from modelfleet_operator.state import Manifest, OperatorSettings, Resource

ANNOTATION_SPEC_HASH = f"{names.GROUP}/spec-hash"
HISTORY_LIMIT = 10
GROUP_SIZE = 1
# What does not change a pod: changing it must not roll.
_NOT_RENDERED = frozenset({"replicas", "suspend"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One pinned rendering. `data` is the ControllerRevision's payload, `number` counts up per LLMDeployment."""

    hash: str
    number: int
    spec_hash: str
    data: Mapping[str, Any]

    @property
    def pod_template(self) -> Mapping[str, Any]:
        """The template of the role `engine`."""
        template: Mapping[str, Any] = self.data["roles"][names.ROLE_ENGINE]["template"]
        return template


def spec_hash(spec: LLMDeploymentSpec) -> str:
    """A digest of what of the spec is rendered; defaults are left out, so a new field's default changes nothing."""
    given = spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    rollout = {key: value for key, value in given.pop("rollout", {}).items() if key != "progressDeadlineSeconds"}
    rendered = {key: value for key, value in given.items() if key not in _NOT_RENDERED and value != {}}
    return digest({**rendered, "rollout": rollout} if rollout else rendered)


def read_revisions(children: Sequence[Manifest]) -> list[Revision]:
    """The ControllerRevisions among the children, newest first."""
    found = [
        Revision(
            hash=item["metadata"]["labels"].get(names.LABEL_REVISION, ""),
            number=item["revision"],
            spec_hash=(item["metadata"].get("annotations") or {}).get(ANNOTATION_SPEC_HASH, ""),
            data=item["data"],
        )
        for item in children
        if item["kind"] == "ControllerRevision"
    ]
    return sorted(found, key=lambda revision: -revision.number)


def target_revision(
    resource: Resource, spec: LLMDeploymentSpec, *, existing: Sequence[Revision], settings: OperatorSettings
) -> Revision:
    """The revision this spec asks for: the pinned one where it was rendered before, else a new rendering.

    An older revision that is asked for again gets the next number, so that the newest is always the wanted one.
    """
    wanted = spec_hash(spec)
    newest = existing[0].number if existing else 0
    known = next((revision for revision in existing if revision.spec_hash == wanted), None)
    if known is None:
        rendered = _render(resource, spec, settings=settings)
        same = next((revision for revision in existing if revision.hash == rendered["hash"]), None)
        number = newest + 1 if same is None or same.number != newest else newest
        return Revision(hash=rendered["hash"], number=number, spec_hash=wanted, data=rendered["data"])
    number = known.number if known.number == newest else newest + 1
    return Revision(hash=known.hash, number=number, spec_hash=wanted, data=known.data)


def _render(resource: Resource, spec: LLMDeploymentSpec, *, settings: OperatorSettings) -> dict[str, Any]:
    template = desired_pod_template(resource, spec, settings=settings)
    engine_config = desired_engine_config(resource, spec).to_json()
    unstamped = {"template": template, "engineConfig": engine_config, "groupSize": GROUP_SIZE}
    revision_hash = digest(unstamped)[:10]
    stamped = _stamp(
        template, name=names.revision_name(name=resource.name, revision_hash=revision_hash), revision_hash=revision_hash
    )
    data = {
        "roles": {names.ROLE_ENGINE: {"template": stamped}},
        "engineConfig": engine_config,
        "groupSize": GROUP_SIZE,
    }
    return {"hash": revision_hash, "data": data}


def _stamp(template: Mapping[str, Any], *, name: str, revision_hash: str) -> dict[str, Any]:
    """The template with its revision's label and its own ConfigMap."""
    metadata = dict(template["metadata"])
    metadata["labels"] = metadata["labels"] | {names.LABEL_REVISION: revision_hash}
    volume = {"name": names.CONFIG_VOLUME, "configMap": {"name": name}}
    spec = dict(template["spec"])
    spec["volumes"] = [volume, *spec.get("volumes", [])]
    return {"metadata": metadata, "spec": spec}


def desired_controller_revision(resource: Resource, revision: Revision) -> dict[str, Any]:
    """The pin. `data` is immutable to the API server; `revision` may rise."""
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": _revision_metadata(resource, revision, annotations={ANNOTATION_SPEC_HASH: revision.spec_hash}),
        "revision": revision.number,
        "data": revision.data,
    }


def desired_config_map(resource: Resource, revision: Revision) -> dict[str, Any]:
    """The revision's EngineConfig, immutable."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _revision_metadata(resource, revision),
        "immutable": True,
        "data": {names.CONFIG_KEY: revision.data["engineConfig"]},
    }


def desired_deployment(
    resource: Resource, revision: Revision, *, replicas: int, progress_deadline_seconds: int
) -> dict[str, Any]:
    """One revision's pods. Its template never changes, so its own rolling update never runs."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _revision_metadata(resource, revision),
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 0,
            "progressDeadlineSeconds": progress_deadline_seconds,
            "selector": {"matchLabels": selector_labels(resource) | {names.LABEL_REVISION: revision.hash}},
            "template": revision.pod_template,
        },
    }


def _revision_metadata(
    resource: Resource, revision: Revision, *, annotations: dict[str, str] | None = None
) -> dict[str, Any]:
    return child_metadata(
        resource,
        name=names.revision_name(name=resource.name, revision_hash=revision.hash),
        labels={names.LABEL_REVISION: revision.hash, names.LABEL_ROLE: names.ROLE_ENGINE},
        annotations=annotations,
    )
