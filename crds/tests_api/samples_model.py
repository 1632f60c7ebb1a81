"""Samples of metadata, model, replicas and what stands directly under spec."""

from __future__ import annotations

from modelfleet_api import rules

from tests_api.samples import (
    ABSENT,
    BASE,
    Sample,
    bad,
    changed,
    good,
    missing,
    no_choice,
    too_large,
    too_long,
    too_many,
    too_short,
    too_small,
    unknown,
    wrong_type,
)

SOURCE = "model.source must be pvc://claim/path (no '..') or hf://org/name@revision"
TOKEN = "model.tokenSecretRef is only for hf:// sources"


def _source(value: str) -> Sample:
    return bad("spec.model.source", value, SOURCE)


def _with_token(source: str, refusal: str | None) -> Sample:
    manifest = changed("spec.model", {"source": source, "tokenSecretRef": {"name": "hub", "key": "token"}})
    return Sample(name=f"token for {source}", manifest=manifest, refusal=refusal, server_refusal=refusal)


def _token(reference: dict[str, str], refusal: str, server: str) -> Sample:
    return bad("spec.model", {"source": "hf://a/b", "tokenSecretRef": reference}, refusal, server)


SAMPLES: tuple[Sample, ...] = (
    Sample(name="smallest", manifest=BASE),
    good("metadata.name", "a" * 40),
    good("metadata.name", "a-1"),
    bad("metadata.name", "a" * 41, rules.NAME_MESSAGE),
    bad("metadata.name", "1a", rules.NAME_MESSAGE),
    bad("metadata.name", "a.b", rules.NAME_MESSAGE),
    bad("apiVersion", "modelfleet.dev/v1", "Input should be 'modelfleet.dev/v1alpha1'", "cannot be handled as"),
    bad("kind", "LlmDeployment", "Input should be 'LLMDeployment'", "must be LLMDeployment"),
    bad("spec", ABSENT, "Field required", "Required value"),
    bad("replicas", 1, "Extra inputs are not permitted", 'unknown field "replicas"'),
    missing("spec.model"),
    missing("spec.model.source"),
    unknown("spec.replica"),
    unknown("spec.model.revision"),
    *(
        good("spec.model.source", source)
        for source in (
            "pvc://models",
            "pvc://models/",
            "pvc://team-a.models/llama 3/it's [new]",
            "pvc://models/..hidden/a..b",
            "hf://org/name",
            "hf://org/name@main",
            "hf://HuggingFaceTB/SmolLM2-135M-Instruct@refs/pr/1",
            "pvc://m/" + "x" * 1016,
        )
    ),
    *(
        _source(source)
        for source in (
            "models/m",
            "pvc://",
            "pvc:///m",
            "pvc://Models/m",
            "pvc://-models/m",
            "pvc://models..x/m",
            "pvc://models//m",
            "pvc://models/../other",
            "pvc://models/..",
            "pvc://models/m\n",
            "pvc://models/m\nhf://a/b",
            "hf://name",
            "hf://org/name/more",
            "hf://org/name@",
            "hf://org/name@main\n",
            "hf://-org/name",
            "s3://bucket/m",
            "xhf://org/name",
        )
    ),
    too_short("spec.model.source"),
    too_long("spec.model.source", "pvc://m/" + "x" * 1017, 1024),
    wrong_type("spec.model.source", 5, "string"),
    good("spec.model.name", "org/name:tag"),
    too_short("spec.model.name"),
    too_long("spec.model.name", "x" * 201, 200),
    _with_token("hf://org/name", None),
    _with_token("pvc://models/m", TOKEN),
    _token({"name": "hub"}, "Field required", "Required value"),
    _token({"key": "token"}, "Field required", "Required value"),
    _token({"name": "", "key": "token"}, "at least 1 character", "at least 1 chars long"),
    _token({"name": "hub", "key": ""}, "at least 1 character", "at least 1 chars long"),
    _token({"name": "h" * 254, "key": "token"}, "at most 253 characters", "may not be more than 253 bytes"),
    _token({"name": "hub", "key": "t" * 254}, "at most 253 characters", "may not be more than 253 bytes"),
    good("spec.replicas", 0),
    good("spec.replicas", None, name="null is absent"),
    too_small("spec.replicas", -1, 0),
    too_large("spec.replicas", 10_001, 10_000),
    wrong_type("spec.replicas", "3", "integer"),
    wrong_type("spec.replicas", True, "integer"),
    bad("spec.replicas", 1.5, "Input should be a valid integer", "must be of type integer"),
    good("spec.suspend", True),
    wrong_type("spec.suspend", "yes", "boolean"),
    wrong_type("spec.suspend", 1, "boolean"),
    good("spec.restartedAt", "2026-01-31T08:00:00Z"),
    good("spec.restartedAt", "2026-01-31T08:00:00.123456+01:00"),
    bad("spec.restartedAt", "2026-01-31T08:00:00", "must be a date-time", "must be of type date-time"),
    bad("spec.restartedAt", "2026-01-31 08:00:00Z", "must be a date-time", "must be of type date-time"),
    bad("spec.restartedAt", "now", "must be a date-time", "must be of type date-time"),
    bad("spec.restartedAt", 1_700_000_000, "must be a date-time", "must be of type "),
    good("spec.parallelism", {"tensor": 1}),
    no_choice("spec.parallelism.tensor", 2),
    unknown("spec.parallelism.pipeline"),
    good("spec.image", "registry.example/engine:1@sha256:abc"),
    too_short("spec.image"),
    too_long("spec.image", "x" * 1025, 1024),
    good("spec.imagePullSecrets", [{"name": "pull"}]),
    bad("spec.imagePullSecrets", [{"name": ""}], "at least 1 character", "at least 1 chars long"),
    bad("spec.imagePullSecrets", [{"name": "s" * 254}], "at most 253 characters", "may not be more than 253 bytes"),
    bad("spec.imagePullSecrets", [{}], "Field required", "Required value"),
    too_many("spec.imagePullSecrets", [{"name": f"s{i}"} for i in range(17)], 16),
    good("spec.podTemplate", {"spec": {"containers": [{"name": "engine", "anything": {"goes": [1, 2.5, None]}}]}}),
    wrong_type("spec.podTemplate", "text", "object"),
    too_many("spec.podTemplate", {f"k{i}": 1 for i in range(65)}, 64),
    too_small("spec.rollout.drainTimeoutSeconds", -1, 0),
    too_large("spec.rollout.drainTimeoutSeconds", 86_401, 86_400),
    good("spec.rollout.drainTimeoutSeconds", 0),
    too_small("spec.rollout.progressDeadlineSeconds", 29, 30),
    too_large("spec.rollout.progressDeadlineSeconds", 86_401, 86_400),
    unknown("spec.rollout.strategy"),
)
