"""The gateways' key: who is let in, how a key is changed without a restart, and that it is never told."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from modelfleet_engine.errors import ModelError
from modelfleet_engine.http.app import build_app
from modelfleet_engine.internal_key import InternalKey

from tests_engine.serving_here import serving_here
from tests_engine.tiny_model import write_tiny_model

UNAUTHORIZED = {
    "message": "This engine answers its gateways only: the header x-modelfleet-key is missing or wrong.",
    "type": "invalid_request_error",
    "param": None,
    "code": "invalid_api_key",
}


def _mount(directory: Path, *, version: str, content: str | None) -> Path:
    """A Secret as the kubelet mounts it: `key` leads to `..data/key`, and `..data` is swapped for another directory."""
    (directory / version).mkdir(parents=True)
    if content is not None:
        (directory / version / "key").write_text(content, encoding="utf-8")
    fresh = directory / "..data_tmp"
    fresh.symlink_to(version)
    os.replace(fresh, directory / "..data")
    path = directory / "key"
    if not path.is_symlink():
        path.symlink_to("..data/key")
    return path


@pytest.mark.parametrize("content", [None, "", "\n", " , \n"])
def test_an_absent_or_empty_file_lets_everybody_in(tmp_path: Path, content: str | None) -> None:
    key = InternalKey(str(_mount(tmp_path, version="1", content=content)))

    assert key.admits(None)
    assert key.admits("anything")


def test_without_a_path_everybody_is_let_in() -> None:
    assert InternalKey(None).admits(None)


def test_only_a_key_of_the_file_is_let_in(tmp_path: Path) -> None:
    key = InternalKey(str(_mount(tmp_path, version="1", content="old-key\nnew-key, third\n")))

    assert [key.admits(given) for given in ("old-key", "new-key", "third")] == [True] * 3
    assert [
        key.admits(given) for given in (None, "", "old-ke", "old-key ", "old-key\nnew-key", "Old-Key", "ä", "\udcff")
    ] == [False] * 8


def test_a_swapped_secret_counts_from_the_next_request_on(tmp_path: Path) -> None:
    key = InternalKey(str(_mount(tmp_path, version="1", content="aaaa")))
    assert (key.admits("aaaa"), key.admits("bbbb")) == (True, False)

    # Of the same size and, so that only the file itself tells, of the same time.
    _mount(tmp_path, version="2", content="bbbb")
    times = os.stat(tmp_path / "1" / "key")
    os.utime(tmp_path / "2" / "key", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (key.admits("aaaa"), key.admits("bbbb")) == (False, True)

    _mount(tmp_path, version="3", content="")
    assert key.admits(None)


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = InternalKey(str(_mount(tmp_path, version="1", content="k")))
    assert key.admits("k")

    def fail(*_arguments: object, **_options: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(Path, "open", fail)
    assert key.admits("k")


def test_a_key_that_cannot_be_read_lets_nobody_in(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    key = InternalKey(str(tmp_path / "key"))

    with pytest.raises(ModelError, match=r"the internal key cannot be read: .*Is a directory"):
        key.check_readable()
    with pytest.raises(OSError, match="Is a directory"):
        key.admits("x")


async def test_with_a_key_everything_but_probes_and_metrics_asks_for_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = _mount(tmp_path / "secret", version="1", content="top-secret")
    async with serving_here(write_tiny_model(tmp_path / "tiny")) as (serving, _):
        serving.internal_key = InternalKey(str(path))
        async with TestClient(TestServer(build_app(serving))) as client:
            for probe in ("/health", "/ready", "/metrics"):
                assert (await client.get(probe)).status == 200
            for path_behind in ("/load", "/kv-events", "/v1/models", "/nowhere"):
                refused = await client.get(path_behind, headers={"x-modelfleet-key": "guess"})
                assert refused.status == 401
                assert await refused.json() == {"error": UNAUTHORIZED}
            body = {"model": "tiny", "prompt": "a", "max_tokens": 2}
            assert (await client.post("/v1/completions", json=body)).status == 401
            shown = {"x-modelfleet-key": "top-secret"}
            assert (await client.post("/v1/completions", json=body, headers=shown)).status == 200
            assert (await client.get("/load", headers=shown)).status == 200
        assert serving.counts.refused == {"unauthorized": 3}
    logged = "".join(str(vars(record)) for record in caplog.records)
    assert "internal_key" in logged
    assert "top-secret" not in logged
    assert "guess" not in logged
