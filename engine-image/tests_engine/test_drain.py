"""The end of a serving process, in real processes: drain, cut, SIGTERM while loading, failures and their codes."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests_engine.server_process import FAKE, ServerProcess, fake_server, running
from tests_engine.tiny_model import write_tiny_model

SLOW = {"FAKE_STEP_SECONDS": "0.02"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@contextlib.contextmanager
def _stream(server: ServerProcess, *, max_tokens: int) -> Iterator[http.client.HTTPResponse]:
    """A stream that has begun."""
    body = {"model": "tiny", "prompt": "a", "max_tokens": max_tokens, "stream": True}
    with contextlib.closing(server.connect()) as connection:
        connection.request("POST", "/v1/completions", body=json.dumps(body))
        response = connection.getresponse()
        assert response.status == 200
        yield response


def _events(raw: bytes) -> list[str]:
    return [line.removeprefix("data: ") for line in raw.decode().split("\n\n") if line]


def _letters(events: list[str]) -> int:
    """How many letters the events before the last one brought: several may come in one event."""
    return sum(len(json.loads(event)["choices"][0]["text"]) for event in events[:-1])


def test_a_drain_accepts_then_refuses_and_finishes_what_runs(directory: Path) -> None:
    with fake_server(directory, "--accept-after-sigterm-seconds", "1", environment=SLOW) as server:
        with _stream(server, max_tokens=150) as response:
            server.terminate()
            server.event("draining")
            ready = server.get("/ready")
            accepted = server.post("/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 2})
            refused = accepted
            while refused.status == 200:
                refused = server.post("/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 2})
            health = server.get("/health")
            events = _events(response.read())
        code = server.wait()

    assert (ready.status, ready.json()) == (503, {"ready": False, "phase": "draining"})
    assert (accepted.status, accepted.json()["choices"][0]["text"]) == (200, "bc")
    assert refused.status == 503
    assert refused.headers["x-modelfleet-draining"] == "1"
    assert refused.headers["connection"] == "close"
    assert refused.json()["error"]["code"] == "engine_draining"
    assert health.status == 200
    assert events[-1] == "[DONE]"
    assert _letters(events) == 150
    assert code == 0
    assert server.event("drained")["clean"] is True


def test_what_is_not_finished_in_time_is_cut_with_an_error_event_and_counted(directory: Path) -> None:
    flags = ("--accept-after-sigterm-seconds", "0", "--drain-timeout-seconds", "1")
    body = {"model": "tiny", "prompt": "a", "max_tokens": 4000}
    with fake_server(directory, *flags, environment=SLOW) as server:
        whole: list[int] = []
        codes: list[str] = []
        draining: list[str | None] = []

        def ask() -> None:
            answer = server.post("/v1/completions", body)
            whole.append(answer.status)
            codes.append(answer.json()["error"]["code"])
            draining.append(answer.headers.get("x-modelfleet-draining"))

        with _stream(server, max_tokens=4000) as response:
            asking = threading.Thread(target=ask)
            asking.start()
            while server.get("/load").json()["running"] < 2:
                time.sleep(0.01)
            server.terminate()
            last = json.loads(_events(response.read())[-1])
            asking.join()
        code = server.wait()

    assert last["error"]["code"] == "engine_draining"
    assert last["error"]["message"] == "The engine is shutting down and its drain timeout of 1 s is over."
    assert (whole, codes) == ([503], ["engine_draining"])
    assert draining == ["1"]
    assert code == 0
    assert server.event("drained")["cut_requests"] == 2


def test_the_openai_client_sees_a_cut_stream_as_an_error_never_as_an_end(directory: Path) -> None:
    flags = ("--accept-after-sigterm-seconds", "0", "--drain-timeout-seconds", "0")
    with fake_server(directory, *flags, environment=SLOW) as server, server.client() as client:
        chunks = client.completions.create(model="tiny", prompt="a", max_tokens=4000, stream=True)
        next(chunks)
        server.terminate()

        with pytest.raises(openai.APIError, match="drain timeout"):
            for _ in chunks:
                pass
        assert server.wait() == 0


def test_an_idle_server_is_gone_right_after_the_time_it_still_accepts(directory: Path) -> None:
    with fake_server(directory, "--accept-after-sigterm-seconds", "0") as server:
        before = time.monotonic()
        server.terminate()

        assert server.wait() == 0
        # The default would accept for 5 s more.
        assert time.monotonic() - before < 4


def test_sigterm_while_loading_ends_the_process_at_once(directory: Path) -> None:
    with running(FAKE, (str(directory), "--port", "0"), environment={"FAKE_LOAD_SECONDS": "60"}) as server:
        server.event("listening")
        ready = server.get("/ready")
        health = server.get("/health")
        early = server.post("/v1/completions", {"model": "tiny", "prompt": "a"})
        before = time.monotonic()
        server.terminate()

        assert server.wait() == 0
        assert time.monotonic() - before < 10
    assert (ready.status, ready.json()) == (503, {"ready": False, "phase": "loading"})
    assert health.status == 200
    assert (early.status, early.headers["retry-after"]) == (503, "1")
    assert early.json()["error"]["code"] == "model_loading"


def test_a_bad_model_ends_with_its_own_code_and_one_clear_line(directory: Path, tmp_path: Path) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    environment = {
        "FAKE_MODEL_ERROR": "config.json: architecture 'Mamba' is unknown",
        "MODELFLEET_TERMINATION_LOG": str(log),
    }
    with running(FAKE, (str(directory), "--port", "0"), environment=environment) as server:
        assert server.wait() == 3

    assert server.stderr == "modelfleet-engine: config.json: architecture 'Mamba' is unknown\n"
    assert log.read_text() == "config.json: architecture 'Mamba' is unknown"


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--internal-key-path", ".", "the internal key cannot be read: [Errno 21] Is a directory: '.'"),
        (
            "--otlp-endpoint",
            "collector",
            "otlp_endpoint must be an address such as http://collector:4318, given 'collector'",
        ),
    ],
)
def test_a_configuration_that_cannot_be_honoured_is_told_before_the_port_opens(
    directory: Path, flag: str, value: str, message: str
) -> None:
    with running(FAKE, (str(directory), "--port", "0", flag, value)) as server:
        assert server.wait() == 3

    assert server.stderr == f"modelfleet-engine: {message}\n"
    assert [line["event"] for line in server.lines] == ["failed"]


def test_a_failing_device_tells_the_clients_first_then_ends_the_process(directory: Path, tmp_path: Path) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    environment = {"FAKE_FAIL_AT_STEP": "20", "MODELFLEET_TERMINATION_LOG": str(log)}
    with fake_server(directory, environment=environment) as server:
        with _stream(server, max_tokens=100) as response:
            events = _events(response.read())
        assert server.wait() == 1

    assert _letters(events) == 20
    assert json.loads(events[-1])["error"]["code"] == "engine_failed"
    assert log.read_text().startswith("RuntimeError: the fake device broke (at fake_device.py:")
    assert "the fake device broke" in str(server.event("failed")["traceback"])


def test_a_device_out_of_memory_has_its_own_exit_code(directory: Path) -> None:
    environment = {"FAKE_FAIL_AT_STEP": "1", "FAKE_FAILURE": "OutOfMemory"}
    with fake_server(directory, environment=environment) as server:
        answer = server.post("/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 9})
        assert server.wait() == 4

    assert server.stderr == "modelfleet-engine: out of memory: MemoryError\n"
    assert (answer.status, answer.json()["error"]["code"]) == (500, "engine_failed")


def test_a_port_in_use_is_one_clear_line(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with running(FAKE, (str(directory), "--port", port)) as server:
            assert server.wait() == 1

    assert "address already in use" in server.stderr
    assert server.stderr.count("\n") == 1


def test_a_hung_step_is_unhealthy_first_and_then_ends_the_process(directory: Path) -> None:
    environment = {"FAKE_HANG_AT_STEP": "5", "FAKE_STUCK_SECONDS": "0.2", "FAKE_HUNG_SECONDS": "1.5"}
    with fake_server(directory, environment=environment) as server:
        healthy = unhealthy = server.get("/health")
        with _stream(server, max_tokens=100) as response:
            while unhealthy.status == 200:
                unhealthy = server.get("/health")
            events = _events(response.read())
        assert server.wait() == 5

    assert (healthy.status, unhealthy.status) == (200, 503)
    assert "a step has been running for" in unhealthy.json()["reason"]
    assert _letters(events) == 5
    assert json.loads(events[-1])["error"]["code"] == "engine_hung"
    assert "a step has been running for" in server.stderr


def test_an_interrupt_in_a_terminal_tells_the_clients_and_ends(directory: Path) -> None:
    with fake_server(directory, environment=SLOW) as server:
        with _stream(server, max_tokens=1000) as response:
            server.process.send_signal(signal.SIGINT)
            last = json.loads(_events(response.read())[-1])
        assert server.wait() == 0

    assert last["error"]["code"] == "engine_interrupted"
