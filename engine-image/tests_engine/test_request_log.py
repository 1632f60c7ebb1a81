"""One JSON line a request: what it cost and how it ended, never what it said."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests_engine.server_process import ServerProcess, fake_server
from tests_engine.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    with fake_server(directory) as process:
        yield process


def _line(server: ServerProcess, body: dict[str, object], **headers: str) -> dict[str, object]:
    """The log line of one completion, its times checked and taken out."""
    request_id = f"r{len(server.lines)}"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    server.post("/v1/completions", {"model": "tiny", **body}, headers={"x-request-id": request_id, **named})
    found: list[dict[str, object]] = []
    deadline = time.monotonic() + 10
    while not found and time.monotonic() < deadline:
        # The line is written after the answer.
        found = [item for item in list(server.lines) if item.get("request_id") == request_id]
    line = dict(found[0])
    times = [line.pop(name, 0.0) for name in ("queue_seconds", "time_to_first_token_seconds", "duration_seconds")]
    assert times == sorted(times, key=lambda seconds: float(str(seconds)))
    for name in ("time", "level", "request_id"):
        del line[name]
    return line


def test_a_served_request_is_told_with_its_choices_tokens_priority_and_time_limit(server: ServerProcess) -> None:
    body = {"prompt": "tell nobody this secret, it is long", "max_tokens": 3, "n": 2, "priority": 4}
    line = _line(server, body, x_request_timeout="30")
    again = _line(server, body)

    assert line == {
        "event": "request",
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
        "model": "tiny",
        "choices": 2,
        "priority": 4,
        "timeout_seconds": 30.0,
        "prompt_tokens": 35,
        "cached_tokens": 0,
        "completion_tokens": 6,
        "finish_reasons": ["length", "length"],
    }
    assert (again["cached_tokens"], "timeout_seconds" in again) == (32, False)
    assert "secret" not in str(server.lines)


def test_a_refused_request_is_told_with_its_error_only(server: ServerProcess) -> None:
    assert _line(server, {"prompt": "secret", "max_tokens": -1}) == {
        "event": "request",
        "method": "POST",
        "path": "/v1/completions",
        "status": 400,
        "error_code": "invalid_value",
    }


def test_a_request_whose_time_is_over_is_told_as_such(server: ServerProcess) -> None:
    line = _line(server, {"prompt": "a", "max_tokens": 4000}, x_request_timeout="0.05")

    assert (line["status"], line["error_code"]) == (504, "deadline_exceeded")
    assert line["finish_reasons"] == ["deadline"]
    assert server.get("/metrics").text.count('finished_reason="deadline",model_name="tiny"} 1.0') == 1
