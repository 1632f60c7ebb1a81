"""The same manifests before both judges: pydantic here, the generated CRD in a real API server."""

from __future__ import annotations

import copy

import pytest
from modelfleet_api import names
from modelfleet_api.llmdeployment import parse_manifest
from modelfleet_api.rules import NAME_MESSAGE, SPEC_RULES
from pydantic import ValidationError

from e2e.cluster.apiserver import ApiServer
from tests_api.api import request
from tests_api.samples import Sample
from tests_api.samples_model import SAMPLES as MODEL_SAMPLES
from tests_api.samples_pods import SAMPLES as POD_SAMPLES

SAMPLES = (*MODEL_SAMPLES, *POD_SAMPLES)
COLLECTION = f"/apis/{names.API_VERSION}/namespaces/default/{names.PLURAL}"


def by_name(sample: Sample) -> str:
    return sample.name


@pytest.mark.parametrize("sample", SAMPLES, ids=by_name)
def test_pydantic_judges_the_manifest_as_the_table_says(sample: Sample) -> None:
    if sample.refusal is None:
        parse_manifest(sample.manifest)
        return
    with pytest.raises(ValidationError) as refused:
        parse_manifest(sample.manifest)
    assert sample.refusal in str(refused.value)


@pytest.mark.apiserver
@pytest.mark.parametrize("sample", SAMPLES, ids=by_name)
def test_the_api_server_judges_the_manifest_as_the_table_says(sample: Sample, crd_server: ApiServer) -> None:
    answer = request(
        crd_server, "POST", f"{COLLECTION}?dryRun=All&fieldValidation=Strict", body=copy.deepcopy(sample.manifest)
    )
    if sample.server_refusal is None:
        assert answer.code == 201, answer.message
        return
    assert answer.code in (400, 422), answer.body
    assert sample.server_refusal in answer.message


def test_every_rule_has_a_bad_sample_with_its_message() -> None:
    refusals = {sample.refusal for sample in SAMPLES}
    assert {rule.message for rule in SPEC_RULES} - refusals == set()
    assert NAME_MESSAGE in refusals
