"""One table of good and bad manifests, judged by pydantic and by the real API server alike.

Every rule of `rules`, every bound, enum and required member has a bad sample; `test_samples` counts them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

BASE: dict[str, Any] = {
    "apiVersion": "modelfleet.dev/v1alpha1",
    "kind": "LLMDeployment",
    "metadata": {"name": "m", "namespace": "default"},
    "spec": {"model": {"source": "pvc://models/m"}},
}
ABSENT = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A manifest and the words in the refusal: pydantic's, and the API server's where they differ; None: accepted."""

    name: str
    manifest: dict[str, Any]
    refusal: str | None = None
    server_refusal: str | None = None


def changed(path: str, value: Any) -> dict[str, Any]:
    """BASE with one member set (dots separate; ABSENT removes it)."""
    manifest = copy.deepcopy(BASE)
    node = manifest
    *parents, last = path.split(".")
    for key in parents:
        node = node.setdefault(key, {})
    if value is ABSENT:
        del node[last]
    else:
        node[last] = value
    return manifest


def good(path: str, value: Any, *, name: str = "") -> Sample:
    """A sample both sides accept."""
    return Sample(name=name or f"{path}={_short(value)}", manifest=changed(path, value))


def bad(path: str, value: Any, refusal: str, server_refusal: str | None = None) -> Sample:
    """A sample both sides refuse with these words."""
    return Sample(
        name=f"{path}={_short(value)}",
        manifest=changed(path, value),
        refusal=refusal,
        server_refusal=server_refusal or refusal,
    )


def too_small(path: str, value: int, least: int) -> Sample:
    """Below a bound; the two spell "or equal" alike."""
    return bad(path, value, f"greater than or equal to {least}")


def too_large(path: str, value: int, most: int) -> Sample:
    """Above a bound."""
    return bad(path, value, f"less than or equal to {most}")


def too_long(path: str, value: str, most: int) -> Sample:
    """A string above its length."""
    return bad(path, value, f"at most {most} characters", f"may not be more than {most} bytes")


def too_short(path: str, least: int = 1) -> Sample:
    """A string below its length."""
    words = "at least 1 character" if least == 1 else f"at least {least} characters"
    return bad(path, "x" * (least - 1), words, f"at least {least} chars long")


def too_many(path: str, value: Any, most: int) -> Sample:
    """A list or map above its size."""
    return bad(path, value, f"at most {most} items", f"must have at most {most} ")


def wrong_type(path: str, value: Any, kind: str) -> Sample:
    """Another JSON type than the schema's; nothing is converted."""
    return bad(path, value, "Input should be a valid ", f'must be of type {kind}: "')


def missing(path: str) -> Sample:
    """A required member that is not there."""
    return bad(path, ABSENT, "Field required", "Required value")


def no_choice(path: str, value: Any) -> Sample:
    """Not one of an enum's words."""
    return bad(path, value, "Input should be ", "Unsupported value")


def no_match(path: str, value: str) -> Sample:
    """A string that its pattern refuses."""
    return bad(path, value, "String should match pattern", "should match '")


def unknown(path: str) -> Sample:
    """A member that does not exist: a typo is refused, not dropped."""
    return bad(path, 1, "Extra inputs are not permitted", f'unknown field "{path}"')


def _short(value: Any) -> str:
    text = "absent" if value is ABSENT else repr(value)
    return text if len(text) <= 48 else f"{text[:40]}…({len(text)})"
