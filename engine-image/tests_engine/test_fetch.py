"""`fetch` in a process of its own, with the unmodified huggingface_hub, against a local hub."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from modelfleet_engine import fetch
from modelfleet_engine.fetch import FetchError, FetchExit, parse_source

from tests_engine.hub_server import COMMIT, HubServer

WEIGHTS = bytes(range(256)) * 4096
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "tokenizer.model": b"sp",
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": WEIGHTS,
    "consolidated.safetensors": b"again",
    "pytorch_model.bin": b"pickle",
    "training_args.pt": b"pickle",
    "modeling_custom.py": b"import os",
    "onnx/model.json": b"{}",
}
WANTED = {"config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja", "model.safetensors"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A finished process: exit code, the last line of stderr, the termination message."""

    code: int
    last_line: str
    termination: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a test downloads to, and the hub it downloads from."""

    directory: Path
    hub: HubServer

    @property
    def model(self) -> Path:
        return self.directory / "models" / "name"

    async def start(self, source: str, **environment: str) -> asyncio.subprocess.Process:
        """Starts the command, with nothing of this process's hub settings."""
        termination = self.directory / "termination-log"
        termination.write_text("")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE"))}
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "modelfleet_engine.main",
            "fetch",
            f"--source={source}",
            f"--dest={self.model}",
            stderr=asyncio.subprocess.PIPE,
            env={
                **kept,
                "HOME": "/nonexistent",
                "HF_ENDPOINT": self.hub.url,
                "MODELFLEET_TERMINATION_LOG": str(termination),
                **environment,
            },
        )

    async def fetch(self, source: str = "hf://org/name", **environment: str) -> Ended:
        """Runs the command to its end."""
        process = await self.start(source, **environment)
        _, stderr = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode is not None
        lines = stderr.decode().splitlines()
        return Ended(
            code=process.returncode,
            last_line=lines[-1].removeprefix("modelfleet-engine fetch: ") if lines else "",
            termination=(self.directory / "termination-log").read_text(),
        )

    def present(self) -> set[str]:
        """The files in the model's directory, our own and the library's left out."""
        return {item.name for item in self.model.iterdir() if not item.name.startswith(".")}


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    hub = HubServer(files=dict(FILES))
    await hub.start()
    yield Place(directory=tmp_path, hub=hub)
    await hub.stop()


async def test_only_safetensors_and_side_files_arrive_and_the_marker_names_the_commit(place: Place) -> None:
    ended = await place.fetch()

    assert ended.code == FetchExit.OK, ended
    assert ended.termination == ""
    assert place.present() == WANTED
    assert {name: (place.model / name).read_bytes() for name in WANTED} == {name: FILES[name] for name in WANTED}
    marker = json.loads((place.model / fetch.MARKER).read_text())
    assert marker == {
        "source": "hf://org/name",
        "commit": COMMIT,
        "files": {name: len(FILES[name]) for name in sorted(WANTED)},
    }
    assert not any("pytorch_model" in line or "onnx" in line or "modeling" in line for line in place.hub.log)


async def test_a_restart_asks_the_hub_for_nothing(place: Place) -> None:
    await place.fetch()
    place.hub.log.clear()

    ended = await place.fetch()

    assert (ended.code, place.hub.log) == (FetchExit.OK, [])
    assert ended.last_line == f"hf://org/name is complete at {COMMIT}: nothing to download"


async def test_a_damaged_file_is_fetched_again_and_no_other(place: Place) -> None:
    await place.fetch()
    (place.model / "config.json").unlink()
    place.hub.log.clear()

    assert (await place.fetch()).code == FetchExit.OK

    assert place.hub.downloads() == [f"GET /org/name/resolve/{COMMIT}/config.json"]


async def test_another_revision_in_the_same_place_is_not_taken_for_complete(place: Place) -> None:
    await place.fetch()
    place.hub.log.clear()

    assert (await place.fetch("hf://org/name@main")).code == FetchExit.OK

    assert place.hub.log[0] == "GET /api/models/org/name/revision/main"
    assert place.hub.downloads() == []


async def test_a_broken_connection_goes_on_where_it_broke(place: Place) -> None:
    place.hub.files["model.safetensors"] = WEIGHTS * 24
    # The library writes whole chunks of 10 MiB, so what came of the second one is asked for again.
    place.hub.break_after_bytes = 12 * 2**20

    assert (await place.fetch()).code == FetchExit.OK

    large = [line for line in place.hub.downloads() if "/cdn/" in line]
    assert [line.split()[2:] for line in large] == [[], [f"bytes={10 * 2**20}-"]]
    assert (place.model / "model.safetensors").read_bytes() == WEIGHTS * 24


async def test_a_killed_download_leaves_no_rubbish_and_the_next_one_completes(place: Place) -> None:
    await place.fetch()
    (place.model / fetch.MARKER).unlink()
    (place.model / "model.safetensors").unlink()
    leftover = place.model / ".cache" / "huggingface" / "download" / "x.0011.incomplete"
    leftover.write_bytes(b"half")
    place.hub.log.clear()

    assert (await place.fetch()).code == FetchExit.OK

    assert not leftover.exists()
    assert len(place.hub.downloads()) == 1
    assert (place.model / "model.safetensors").read_bytes() == WEIGHTS


async def test_sigterm_in_the_middle_is_not_taken_for_success(place: Place) -> None:
    place.hub.files["model.safetensors"] = WEIGHTS * 64
    process = await place.start("hf://org/name")
    while not place.hub.downloads():
        await asyncio.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    await asyncio.wait_for(process.communicate(), 20)

    assert process.returncode == 143
    assert not (place.model / fetch.MARKER).exists()


async def test_the_token_opens_a_private_model(place: Place) -> None:
    place.hub.token = "secret-token"

    assert (await place.fetch(HF_TOKEN="secret-token")).code == FetchExit.OK
    assert not place.hub.cdn_saw_token


async def test_a_renamed_model_is_found_under_its_old_name(place: Place) -> None:
    assert (await place.fetch("hf://org/old")).code == FetchExit.OK

    assert "GET /api/models/org/old/revision/main" in place.hub.log
    assert place.present() == WANTED


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "or is private (401): check model.source, and for a private model the Secret that"),
        ("wrong-token", "refuses access to org/name (401): check the Secret that model.tokenSecretRef names"),
    ],
)
async def test_a_refused_model_says_which_secret_to_check_and_not_what_is_in_it(
    token: str | None, message: str, place: Place
) -> None:
    place.hub.token = "secret-token"

    ended = await place.fetch(**({} if token is None else {"HF_TOKEN": token}))

    assert ended.code == FetchExit.REFUSED
    assert message in ended.last_line
    assert ("(no token was given)" in ended.last_line) == (token is None)
    assert ended.termination == ended.last_line
    assert "wrong-token" not in ended.last_line


async def test_a_gated_model_says_that_its_terms_must_be_accepted(place: Place) -> None:
    place.hub.is_gated = True

    ended = await place.fetch(HF_TOKEN="any")

    assert ended.code == FetchExit.REFUSED
    assert ended.last_line.startswith("org/name is gated (403): accept its terms on the hub with the account")


async def test_an_unknown_revision_and_an_unknown_model_are_told_apart(place: Place) -> None:
    revision = await place.fetch("hf://org/name@v9")
    model = await place.fetch("hf://org/other")

    assert (revision.code, model.code) == (FetchExit.REFUSED, FetchExit.REFUSED)
    assert revision.last_line.startswith("org/name has no revision v9 on http://127.0.0.1:")
    assert model.last_line.startswith("org/other does not exist on http://127.0.0.1:")


async def test_a_model_without_safetensors_is_refused_before_anything_is_downloaded(place: Place) -> None:
    place.hub.files = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}

    ended = await place.fetch()

    assert ended.code == FetchExit.REFUSED
    assert ended.last_line == "org/name at main has no *.safetensors: other weight formats are not loaded"
    assert place.hub.downloads() == []


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_hub_in_trouble_is_a_reason_to_try_again(status: int, place: Place) -> None:
    place.hub.api_status = status

    ended = await place.fetch()

    assert ended.code == FetchExit.RETRY
    assert f"answered {status} for org/name" in ended.last_line


async def test_a_hub_out_of_reach_is_a_reason_to_try_again(place: Place) -> None:
    await place.hub.stop()

    ended = await place.fetch()

    assert ended.code == FetchExit.RETRY
    assert ended.last_line.startswith(f"{place.hub.url} cannot be reached: ")


async def test_what_is_in_the_directory_does_not_hide_that_the_hub_is_out_of_reach(place: Place) -> None:
    """snapshot_download would return an existing directory as it is, complete or not."""
    place.model.mkdir(parents=True)
    (place.model / "config.json").write_bytes(b"{}")
    place.hub.api_status = 503

    assert (await place.fetch()).code == FetchExit.RETRY
    assert not (place.model / fetch.MARKER).exists()


def test_a_model_larger_than_the_disk_is_refused_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelfleet_engine import hub

    huge = fetch.Snapshot(source="hf://org/name", commit=COMMIT, files={"model.safetensors": 2**60})
    monkeypatch.setattr(hub, "resolve", lambda *_, **__: huge)

    with pytest.raises(FetchError, match=r"needs 1099511627776\.0 MiB more in .* free: give the volume") as refused:
        fetch.fetch("hf://org/name", destination=tmp_path)
    assert refused.value.exit_code == FetchExit.NO_SPACE


@pytest.mark.parametrize("source", ["pvc://a/b", "hf://name", "hf://org/name@", "hf://org/name@main\n"])
def test_only_a_hub_source_is_fetched(source: str) -> None:
    with pytest.raises(FetchError, match="--source must be hf://org/name@revision"):
        parse_source(source)
