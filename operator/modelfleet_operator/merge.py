"""`spec.podTemplate`: a strategic merge onto the rendered pod template, with the merge keys of the upstream pod type.

PURE. Lists with a merge key are merged element by element, all other lists are replaced; null removes a field and
`$patch: delete` removes an element. Source: the `patchMergeKey` tags of core/v1 PodTemplateSpec.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelfleet_api import names

from modelfleet_operator.errors import TemplateError

# The list's field name -> the member that identifies an element.
MERGE_KEYS: Mapping[str, str] = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
    # Atomic upstream. Here a user's gate comes beside ours, without which no pod would ever be routable.
    "readinessGates": "conditionType",
}
_PATCH = "$patch"


def merge_pod_template(template: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """The template with the user's patch on it. TemplateError where it would break what the operator stands on."""
    _refuse_unknown_parts(patch)
    merged = _merge_map(template, patch)
    labels = merged.get("metadata", {}).get("labels", {})
    for key, value in template["metadata"]["labels"].items():
        if labels.get(key) != value:
            raise TemplateError(f"podTemplate may not change the label {key}")
    _require(merged["spec"], "containers", name=names.ENGINE_CONTAINER)
    _require(merged["spec"], "readinessGates", name=names.READINESS_GATE_ROUTABLE)
    return merged


def _require(pod: Mapping[str, Any], field: str, *, name: str) -> None:
    """Refuses a merge that took away an element the operator stands on."""
    if name not in {item.get(MERGE_KEYS[field]) for item in pod.get(field, [])}:
        raise TemplateError(f"podTemplate may not remove {name} from {field}")


def _refuse_unknown_parts(patch: Mapping[str, Any]) -> None:
    unknown = sorted(set(patch) - {"metadata", "spec"})
    if unknown:
        raise TemplateError(f"podTemplate has metadata and spec only, not {', '.join(unknown)}")
    for part in ("metadata", "spec"):
        if part in patch and not isinstance(patch[part], Mapping):
            raise TemplateError(f"podTemplate.{part} is an object, given: {patch[part]!r}"[:200])
    unknown = sorted(set(patch.get("metadata", {})) - {"labels", "annotations"})
    if unknown:
        raise TemplateError(f"podTemplate.metadata has labels and annotations only, not {', '.join(unknown)}")


def _merge_map(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in patch.items():
        if key.startswith("$"):
            raise TemplateError(f"podTemplate: the only directive is $patch: delete on an element of a list, not {key}")
        if value is None:
            merged.pop(key, None)
        elif isinstance(merged.get(key), Mapping):
            if not isinstance(value, Mapping):
                raise TemplateError(f"podTemplate: {key} is an object, given: {value!r}"[:200])
            merged[key] = _merge_map(merged[key], value)
        elif key in MERGE_KEYS and isinstance(merged.get(key), list | None) and isinstance(value, list):
            merged[key] = _merge_list(merged.get(key) or [], value, field=key)
        elif isinstance(merged.get(key), list) and not isinstance(value, list):
            raise TemplateError(f"podTemplate: {key} is a list, given: {value!r}"[:200])
        else:
            merged[key] = value
    return merged


def _merge_list(base: list[Any], patch: list[Any], *, field: str) -> list[Any]:
    key = MERGE_KEYS[field]
    merged = list(base)
    for item in patch:
        if not isinstance(item, Mapping) or key not in item:
            raise TemplateError(f"podTemplate: each element of {field} needs {key}")
        index = next((at for at, have in enumerate(merged) if have.get(key) == item[key]), None)
        if item.get(_PATCH) == "delete":
            merged = [have for have in merged if have.get(key) != item[key]]
        elif index is None:
            merged.append(_merge_map({}, item))
        else:
            merged[index] = _merge_map(merged[index], item)
    return merged
