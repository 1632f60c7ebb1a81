"""Tables of good and bad manifests, judged by pydantic and by the real API server alike.

Every rule of `rules`, every bound, enum and required member has a bad sample; `test_samples` counts them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
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


def _short(value: Any) -> str:
    text = "absent" if value is ABSENT else repr(value)
    return text if len(text) <= 48 else f"{text[:40]}…({len(text)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Makes samples of one kind out of its smallest manifest, each with one member changed (dots separate names)."""

    base: Mapping[str, Any]

    def changed(self, path: str, value: Any) -> dict[str, Any]:
        """The base with one member set (ABSENT removes it)."""
        manifest = copy.deepcopy(dict(self.base))
        node = manifest
        *parents, last = path.split(".")
        for key in parents:
            node = node.setdefault(key, {})
        if value is ABSENT:
            del node[last]
        else:
            node[last] = value
        return manifest

    def good(self, path: str, value: Any, *, name: str = "") -> Sample:
        """A sample both sides accept."""
        return Sample(name=name or f"{path}={_short(value)}", manifest=self.changed(path, value))

    def bad(self, path: str, value: Any, refusal: str, server_refusal: str | None = None) -> Sample:
        """A sample both sides refuse with these words."""
        return Sample(
            name=f"{path}={_short(value)}",
            manifest=self.changed(path, value),
            refusal=refusal,
            server_refusal=server_refusal or refusal,
        )

    def too_small(self, path: str, value: int, least: int) -> Sample:
        """Below a bound; the two spell "or equal" alike."""
        return self.bad(path, value, f"greater than or equal to {least}")

    def too_large(self, path: str, value: int, most: int) -> Sample:
        """Above a bound."""
        return self.bad(path, value, f"less than or equal to {most}")

    def too_long(self, path: str, value: str, most: int) -> Sample:
        """A string above its length."""
        return self.bad(path, value, f"at most {most} characters", f"may not be more than {most} bytes")

    def too_short(self, path: str, least: int = 1) -> Sample:
        """A string below its length."""
        words = "at least 1 character" if least == 1 else f"at least {least} characters"
        return self.bad(path, "x" * (least - 1), words, f"at least {least} chars long")

    def too_many(self, path: str, value: Any, most: int) -> Sample:
        """A list or map above its size."""
        return self.bad(path, value, f"at most {most} items", f"must have at most {most} ")

    def wrong_type(self, path: str, value: Any, kind: str) -> Sample:
        """Another JSON type than the schema's; nothing is converted."""
        return self.bad(path, value, "Input should be a valid ", f'must be of type {kind}: "')

    def missing(self, path: str) -> Sample:
        """A required member that is not there."""
        return self.bad(path, ABSENT, "Field required", "Required value")

    def no_choice(self, path: str, value: Any) -> Sample:
        """Not one of an enum's words."""
        return self.bad(path, value, "Input should be ", "Unsupported value")

    def no_match(self, path: str, value: str) -> Sample:
        """A string that its pattern refuses."""
        return self.bad(path, value, "String should match pattern", "should match '")

    def unknown(self, path: str) -> Sample:
        """A member that does not exist: a typo is refused, not dropped."""
        return self.bad(path, 1, "Extra inputs are not permitted", f'unknown field "{path}"')


LLM = Samples(base=BASE)
changed, good, bad = LLM.changed, LLM.good, LLM.bad
too_small, too_large, too_short, too_long, too_many = (
    LLM.too_small,
    LLM.too_large,
    LLM.too_short,
    LLM.too_long,
    LLM.too_many,
)
wrong_type, missing, no_choice, no_match, unknown = (
    LLM.wrong_type,
    LLM.missing,
    LLM.no_choice,
    LLM.no_match,
    LLM.unknown,
)
