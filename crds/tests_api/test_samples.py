"""The same manifests before both judges: pydantic here, the generated CRDs in a real API server."""

from __future__ import annotations

import copy

import pytest
from modelfleet_api.crd_kinds import KINDS
from pydantic import ValidationError

from e2e.cluster.apiserver import ApiServer
from tests_api.api import request
from tests_api.kinds import JUDGED, JudgedKind
from tests_api.samples import Sample

CASES = [
    pytest.param(judged, sample, id=f"{judged.kind.name} {sample.name}")
    for judged in JUDGED
    for sample in judged.samples
]


@pytest.mark.parametrize(("judged", "sample"), CASES)
def test_pydantic_judges_the_manifest_as_the_table_says(judged: JudgedKind, sample: Sample) -> None:
    if sample.refusal is None:
        judged.parse(sample.manifest)
        return
    with pytest.raises(ValidationError) as refused:
        judged.parse(sample.manifest)
    assert sample.refusal in str(refused.value)


@pytest.mark.apiserver
@pytest.mark.parametrize(("judged", "sample"), CASES)
def test_the_api_server_judges_the_manifest_as_the_table_says(
    judged: JudgedKind, sample: Sample, crd_server: ApiServer
) -> None:
    path = f"{judged.collection}?dryRun=All&fieldValidation=Strict"
    answer = request(crd_server, "POST", path, body=copy.deepcopy(sample.manifest))
    if sample.server_refusal is None:
        assert answer.code == 201, answer.message
        return
    assert answer.code in (400, 422), answer.body
    assert sample.server_refusal in answer.message


@pytest.mark.parametrize("judged", JUDGED, ids=lambda judged: judged.kind.name)
def test_every_rule_has_a_bad_sample_with_its_message(judged: JudgedKind) -> None:
    refusals = {sample.refusal for sample in judged.samples}
    assert {rule.message for rule in judged.kind.spec_rules} - refusals == set()
    if judged.kind.name_rule is not None:
        assert judged.kind.name_rule[1] in refusals


def test_every_kind_has_samples() -> None:
    assert [judged.kind for judged in JUDGED] == list(KINDS)
