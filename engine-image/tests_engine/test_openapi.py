"""The OpenAPI document: it names every route, and what it promises holds for requests made up from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from modelfleet_engine.http import answer_schema as answers
from modelfleet_engine.http.app import build_app
from modelfleet_engine.http.openapi import document
from pydantic import BaseModel
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from tests_engine.model_fixtures import demo_model_dir  # noqa: F401 - a fixture
from tests_engine.server_process import REAL, ServerProcess, fake_server, running
from tests_engine.serving_here import serving_here
from tests_engine.tiny_model import write_tiny_model

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
# A stream without an end.
ENDLESS = "/kv-events"
EXAMPLES = 15


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    environment = {"FAKE_STEP_SECONDS": "0"}
    with fake_server(directory, "--max-model-len", "64", environment=environment) as process:
        yield process


def _operations(url: str) -> list[Any]:
    # A deadline that passes is a 504 as promised, not a failure.
    statuses = ["2xx", "4xx", 504]
    config = schemathesis.Config.from_dict({"checks": {"not_a_server_error": {"expected-statuses": statuses}}})
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", config=config)
    operations = []
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result
        operations.append(result.ok())
    return [operation for operation in operations if operation.path != ENDLESS]


def _statuses(url: str, *, mode: schemathesis.GenerationMode, examples: int) -> set[int]:
    """Asks every operation with requests made up from the document, checks the answers, and says how they ended."""
    statuses: set[int] = set()
    for operation in _operations(url):
        if not operation.body and mode is schemathesis.GenerationMode.NEGATIVE:
            continue

        @settings(
            max_examples=examples, derandomize=True, deadline=None, database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=mode))
        def holds(case: Any) -> None:
            statuses.add(case.call_and_validate(checks=CHECKS, timeout=60).status_code)

        holds()
    return statuses


def test_what_the_document_promises_holds_for_good_requests(server: ServerProcess) -> None:
    assert 200 in _statuses(server.url, mode=schemathesis.GenerationMode.POSITIVE, examples=EXAMPLES)


def test_what_the_document_promises_holds_for_bad_requests(server: ServerProcess) -> None:
    assert 400 in _statuses(server.url, mode=schemathesis.GenerationMode.NEGATIVE, examples=EXAMPLES)


@pytest.mark.model
def test_the_real_engine_holds_it_too(demo_model_dir: Path) -> None:  # noqa: F811
    arguments = (str(demo_model_dir), "--port", "0", "--max-model-len", "64")
    with running(REAL, arguments) as process:
        process.event("ready", timeout_seconds=120)
        assert 200 in _statuses(process.url, mode=schemathesis.GenerationMode.POSITIVE, examples=8)


async def test_every_route_is_in_the_document_and_no_other(tmp_path: Path) -> None:
    async with serving_here(write_tiny_model(tmp_path / "tiny")) as (serving, _):
        described = document(serving)
        routes = build_app(serving).router.routes()

    served = {
        (route.method.lower(), re.sub(r":[^}]*", "", route.resource.canonical if route.resource else ""))
        for route in routes
        if route.method != "HEAD"
    }
    assert {(method, path) for path, methods in described["paths"].items() for method in methods} == served
    assert described["components"]["schemas"]["CompletionBody"]["properties"]["model"]["enum"] == ["tiny"]


PROMPT = {"model": "tiny", "prompt": "ab", "max_tokens": 2}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
EVERYTHING = {"n": 2, "prompt_logprobs": 1, "return_token_ids": True}


@pytest.mark.parametrize(
    ("path", "body", "answer_type"),
    [
        ("/v1/completions", PROMPT, answers.Completion),
        ("/v1/completions", {**PROMPT, **EVERYTHING, "logprobs": 2, "echo": True}, answers.Completion),
        ("/v1/chat/completions", CHAT, answers.ChatCompletion),
        ("/v1/chat/completions", {**CHAT, **EVERYTHING, "logprobs": True, "top_logprobs": 2}, answers.ChatCompletion),
        ("/v1/completions", {"model": "tiny"}, answers.ErrorAnswer),
        ("/tokenize", {"prompt": "ab", "return_token_strs": True}, answers.Tokenized),
        ("/detokenize", {"tokens": [1]}, answers.Detokenized),
    ],
)
def test_an_answer_has_the_fields_of_its_model_and_no_other(
    server: ServerProcess, path: str, body: object, answer_type: type[BaseModel]
) -> None:
    answer_type.model_validate_json(server.post(path, body).body)
