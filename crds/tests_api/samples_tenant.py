"""Samples of Tenant."""

from __future__ import annotations

from typing import Any

from modelfleet_api import rules

from tests_api.samples import ABSENT, Sample, Samples

BASE: dict[str, Any] = {
    "apiVersion": "modelfleet.dev/v1alpha1",
    "kind": "Tenant",
    "metadata": {"name": "team-a"},
    "spec": {},
}
TENANT = Samples(base=BASE)
good, bad = TENANT.good, TENANT.bad
KEY = {"name": "keys", "namespace": "modelfleet-system", "key": "team-a"}
COUNTS = ("requestsPerMinute", "tokensPerMinute", "tokensPerDay")
REFERENCES = ("spec.saltSecretRef", "spec.keys")


def _reference(path: str, change: dict[str, Any], refusal: str, server: str) -> Sample:
    """A reference to a Secret's key, one member of it changed (None: absent)."""
    reference = {name: value for name, value in {**KEY, **change}.items() if value is not None}
    return bad(path, [reference] if path == "spec.keys" else reference, refusal, server)


SAMPLES: tuple[Sample, ...] = (
    Sample(name="smallest", manifest=BASE),
    bad("apiVersion", "modelfleet.dev/v1", "Input should be 'modelfleet.dev/v1alpha1'", "cannot be handled as"),
    bad("kind", "Tenants", "Input should be 'Tenant'", "must be Tenant"),
    bad("spec", ABSENT, "Field required", "Required value"),
    good("metadata.name", "a" * 63),
    bad("metadata.name", "a" * 64, rules.TENANT_NAME_MESSAGE),
    bad("metadata.name", "anonymous", rules.TENANT_NAME_MESSAGE),
    TENANT.unknown("spec.salt"),
    good("spec.keys", [KEY, {**KEY, "key": "team-a-next"}]),
    good("spec.keys", []),
    bad("spec.keys", [KEY, KEY], "Duplicate value"),
    TENANT.too_many("spec.keys", [{**KEY, "key": f"k{number}"} for number in range(17)], 16),
    good("spec.saltSecretRef", KEY),
    *(
        _reference(path, change, refusal, server)
        for path in REFERENCES
        for change, refusal, server in (
            ({"name": None}, "Field required", "Required value"),
            ({"namespace": None}, "Field required", "Required value"),
            ({"key": None}, "Field required", "Required value"),
            ({"name": ""}, "at least 1 character", "at least 1 chars long"),
            ({"key": ""}, "at least 1 character", "at least 1 chars long"),
            ({"name": "n" * 254}, "at most 253 characters", "may not be more than 253 bytes"),
            ({"key": "k" * 254}, "at most 253 characters", "may not be more than 253 bytes"),
            ({"namespace": "n" * 64}, "at most 63 characters", "may not be more than 63 bytes"),
            ({"namespace": "Not-a-namespace"}, "String should match pattern", "should match '"),
        )
    ),
    good("spec.allowedModels", []),
    good("spec.allowedModels", ["llama.default", "a.b", f"{'a' * 40}.{'b' * 63}"]),
    bad("spec.allowedModels", ["a."], "at least 3 characters", "at least 3 chars long"),
    bad("spec.allowedModels", ["llama"], "String should match pattern", "should match '"),
    bad("spec.allowedModels", ["llama.default.svc"], "String should match pattern", "should match '"),
    bad("spec.allowedModels", ["a." + "b" * 103], "at most 104 characters", "may not be more than 104 bytes"),
    TENANT.too_many("spec.allowedModels", [f"m{number}.default" for number in range(257)], 256),
    *(good(f"spec.{name}", 2**53) for name in COUNTS),
    *(TENANT.too_small(f"spec.{name}", 0, 1) for name in (*COUNTS, "maxConcurrent", "weight")),
    *(TENANT.too_large(f"spec.{name}", 2**53 + 1, 2**53) for name in COUNTS),
    TENANT.wrong_type("spec.tokensPerDay", "1M", "integer"),
    good("spec.maxConcurrent", 1),
    TENANT.too_large("spec.maxConcurrent", 1_000_001, 1_000_000),
    good("spec.priority", -1_000_000),
    TENANT.too_small("spec.priority", -1_000_001, -1_000_000),
    TENANT.too_large("spec.priority", 1_000_001, 1_000_000),
    good("spec.weight", 10_000),
    TENANT.too_large("spec.weight", 10_001, 10_000),
)
