"""Samples of ModelRoute."""

from __future__ import annotations

from typing import Any

from tests_api.samples import ABSENT, Sample, Samples

BASE: dict[str, Any] = {
    "apiVersion": "modelfleet.dev/v1alpha1",
    "kind": "ModelRoute",
    "metadata": {"name": "chat", "namespace": "default"},
    "spec": {"aliases": ["chat"], "targets": [{"model": "llama"}]},
}
ROUTE = Samples(base=BASE)
good, bad = ROUTE.good, ROUTE.bad
WHOLE = "targets need aliases or match, and aliases and match need targets"
SOMETHING = "a ModelRoute has targets or grants"
SOMEWHERE = "at least one of targets needs a weight above 0"
MATCH = {"headers": [{"name": "x-team", "value": "a"}]}
GRANT = {"name": "meta/llama", "model": "llama"}


def _empty(path: str) -> Sample:
    return bad(path, [], "at least 1 item", "should have at least 1 items")


def _header(change: dict[str, Any], refusal: str, server: str) -> Sample:
    header = {name: value for name, value in {"name": "x-team", "value": "a", **change}.items() if value is not None}
    return bad("spec.match", {"headers": [header]}, refusal, server)


def _target(change: dict[str, Any], refusal: str, server: str | None = None) -> Sample:
    target = {name: value for name, value in {"model": "llama", **change}.items() if value is not None}
    # Beside a good one, so that only the change is wrong.
    return bad("spec.targets", [{"model": "other"}, target], refusal, server)


def _grant(change: dict[str, Any], refusal: str, server: str) -> Sample:
    grant = {name: value for name, value in {**GRANT, **change}.items() if value is not None}
    return bad("spec.grants", [grant], refusal, server)


SAMPLES: tuple[Sample, ...] = (
    Sample(name="smallest", manifest=BASE),
    bad("apiVersion", "modelfleet.dev/v1", "Input should be 'modelfleet.dev/v1alpha1'", "cannot be handled as"),
    bad("kind", "Route", "Input should be 'ModelRoute'", "must be ModelRoute"),
    bad("spec", ABSENT, "Field required", "Required value"),
    ROUTE.unknown("spec.weight"),
    good("spec", {"grants": [GRANT]}, name="grants alone"),
    good("spec", {"match": MATCH, "targets": [{"model": "llama"}]}, name="headers alone"),
    bad("spec", {}, SOMETHING),
    bad("spec", {"targets": [{"model": "llama"}]}, WHOLE),
    bad("spec", {"aliases": ["chat"], "grants": [GRANT]}, WHOLE),
    bad("spec", {"match": MATCH, "grants": [GRANT]}, WHOLE),
    good("spec.aliases", ["gpt-4o", "org/name:tag", "x" * 200]),
    _empty("spec.aliases"),
    bad("spec.aliases", [""], "at least 1 character", "at least 1 chars long"),
    bad("spec.aliases", ["x" * 201], "at most 200 characters", "may not be more than 200 bytes"),
    bad("spec.aliases", ["a", "b", "a"], "Duplicate value"),
    ROUTE.too_many("spec.aliases", [f"a{number}" for number in range(65)], 64),
    good("spec.targets", [{"model": "new", "weight": 10}, {"model": "old", "namespace": "team-b", "weight": 90}]),
    good("spec.targets", [{"model": "new", "weight": 0}, {"model": "old", "weight": 1_000_000}]),
    _empty("spec.targets"),
    bad("spec.targets", [{"model": "new", "weight": 0}], SOMEWHERE),
    ROUTE.too_many("spec.targets", [{"model": "llama"}] * 65, 64),
    _target({"model": None}, "Field required", "Required value"),
    _target({"model": "Llama"}, "String should match pattern", "should match '"),
    _target({"model": "a" * 41}, "at most 40 characters", "may not be more than 40 bytes"),
    _target({"namespace": "Team"}, "String should match pattern", "should match '"),
    _target({"namespace": "n" * 64}, "at most 63 characters", "may not be more than 63 bytes"),
    _target({"weight": -1}, "greater than or equal to 0"),
    _target({"weight": 1_000_001}, "less than or equal to 1000000"),
    good("spec.match", {"headers": [{"name": "x-team", "value": ""}, {"name": "x_stage", "value": "Canary 1"}]}),
    bad("spec.match", {}, "Field required", "Required value"),
    bad("spec.match", {"headers": []}, "at least 1 item", "should have at least 1 items"),
    bad("spec.match", {"headers": MATCH["headers"] * 2}, "Duplicate value"),
    ROUTE.too_many("spec.match.headers", [{"name": f"x{number}", "value": ""} for number in range(17)], 16),
    _header({"name": None}, "Field required", "Required value"),
    _header({"value": None}, "Field required", "Required value"),
    _header({"name": "X-Team"}, "String should match pattern", "should match '"),
    _header({"name": "x" * 129}, "at most 128 characters", "may not be more than 128 bytes"),
    _header({"value": "v" * 1025}, "at most 1024 characters", "may not be more than 1024 bytes"),
    good("spec.grants", [GRANT, {"name": "qwen", "model": "qwen"}]),
    _empty("spec.grants"),
    bad("spec.grants", [GRANT, {"name": GRANT["name"], "model": "other"}], "Duplicate value"),
    ROUTE.too_many("spec.grants", [{"name": f"n{number}", "model": "m"} for number in range(65)], 64),
    _grant({"name": None}, "Field required", "Required value"),
    _grant({"model": None}, "Field required", "Required value"),
    _grant({"name": ""}, "at least 1 character", "at least 1 chars long"),
    _grant({"name": "x" * 201}, "at most 200 characters", "may not be more than 200 bytes"),
    _grant({"model": "Llama"}, "String should match pattern", "should match '"),
    _grant({"model": "a" * 41}, "at most 40 characters", "may not be more than 40 bytes"),
)
