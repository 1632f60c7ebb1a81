"""`modelfleet-engine fetch`: downloads a model of the Hugging Face Hub into a directory, once.

Runs in an init container, with the unmodified huggingface_hub. Takes weights only as safetensors: pickle files are
never downloaded. Must not import torch, nor huggingface_hub before its environment is set (it reads that on import).

What an interruption costs: a broken connection goes on where it broke (HTTP Range); a restarted container keeps
the finished files and fetches the one that was under way anew (huggingface_hub keeps no part of it).
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path

from modelfleet_api.rules import HF_SOURCE

from modelfleet_engine.errors import write_termination_message

MARKER = ".modelfleet-complete.json"
LOCK = ".modelfleet-fetch.lock"
ALLOWED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
# Subfolders hold other formats (onnx/, original/); consolidated.* repeats the shards in another layout.
IGNORED = ("*/*", "consolidated*")
API_TIMEOUT_SECONDS = 30.0
# Room that the file system must keep beyond the download itself.
SPARE_BYTES = 64 * 1024 * 1024
LIBRARY_SETTINGS = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


class FetchExit(IntEnum):
    """How the init container ends; the operator turns REFUSED into ModelNotFound, the others into a failed download."""

    OK = 0
    REFUSED = 3
    NO_SPACE = 73
    RETRY = 75


class FetchError(Exception):
    """The download cannot be done (now). The message is one line a person can act on."""

    def __init__(self, message: str, *, exit_code: FetchExit) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A commit of a repository and the files of it that an engine needs, with their sizes in bytes."""

    source: str
    commit: str
    files: Mapping[str, int]

    @property
    def bytes(self) -> int:
        """All files together."""
        return sum(self.files.values())

    def missing_in(self, directory: Path) -> list[str]:
        """The files that are not there in full."""
        sizes = {name: (directory / name).stat().st_size for name in self.files if (directory / name).is_file()}
        return [name for name, size in self.files.items() if sizes.get(name) != size]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `modelfleet-engine fetch`."""
    parser.add_argument("--source", required=True, help="hf://org/name or hf://org/name@revision")
    parser.add_argument("--dest", required=True, type=Path, help="directory that receives the model's files")


def run(args: argparse.Namespace) -> int:
    """Fetches; returns a FetchExit. What went wrong is one line on stderr and in the termination message."""
    # Not 0: the kubelet would take an interrupted download for a finished one.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    try:
        fetch(args.source, destination=args.dest)
    except FetchError as error:
        write_termination_message(str(error))
        sys.stderr.write(f"modelfleet-engine fetch: {error}\n")
        return error.exit_code
    return FetchExit.OK


def fetch(source: str, *, destination: Path) -> Snapshot:
    """Makes `destination` hold `source`; downloads nothing where an earlier run completed. Raises FetchError."""
    repository, revision = parse_source(source)
    try:
        destination.mkdir(parents=True, exist_ok=True)
        with _alone(destination):
            done = read_marker(destination)
            if done is not None and done.source == source and not done.missing_in(destination):
                _say(f"{source} is complete at {done.commit}: nothing to download")
                return done
            snapshot = _download(repository, revision=revision, source=source, destination=destination)
            _write_marker(destination, snapshot)
            return snapshot
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FetchError(f"{destination}: {_disk_full(error)}", exit_code=FetchExit.NO_SPACE) from error
        raise FetchError(f"{source}: {_one_line(error)}", exit_code=FetchExit.RETRY) from error


def parse_source(source: str) -> tuple[str, str]:
    """`hf://org/name@revision` -> (org/name, revision); without a revision it is main."""
    if re.fullmatch(HF_SOURCE, source) is None:
        raise FetchError(f"--source must be hf://org/name@revision, given: {source}", exit_code=FetchExit.REFUSED)
    repository, _, revision = source.removeprefix("hf://").partition("@")
    return repository, revision or "main"


def read_marker(destination: Path) -> Snapshot | None:
    """What an earlier run completed here."""
    path = destination / MARKER
    return Snapshot(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _write_marker(destination: Path, snapshot: Snapshot) -> None:
    """Atomic: it is there only when everything is."""
    temporary = destination / f"{MARKER}.tmp"
    temporary.write_text(json.dumps(asdict(snapshot), indent=1), encoding="utf-8")
    temporary.replace(destination / MARKER)


@contextmanager
def _alone(destination: Path) -> Iterator[None]:
    """One download into a directory at a time, so that leftovers of a killed one can be told from a living one's."""
    with (destination / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in (destination / ".cache").rglob("*.incomplete"):
            leftover.unlink()
        yield


def _download(repository: str, *, revision: str, source: str, destination: Path) -> Snapshot:
    for name, value in {**LIBRARY_SETTINGS, "HF_HOME": str(destination / ".cache" / "home")}.items():
        os.environ.setdefault(name, value)
    from modelfleet_engine import hub

    snapshot = hub.resolve(repository, revision=revision, source=source)
    missing = snapshot.missing_in(destination)
    need_bytes = sum(snapshot.files[name] for name in missing)
    free_bytes = shutil.disk_usage(destination).free
    if need_bytes + SPARE_BYTES > free_bytes:
        raise FetchError(
            f"{source} needs {_mib(need_bytes)} more in {destination}, which has {_mib(free_bytes)} free: "
            "give the volume or the pod's ephemeral storage more room",
            exit_code=FetchExit.NO_SPACE,
        )
    started = time.monotonic()
    _say(f"{source} is commit {snapshot.commit}: {len(missing)} files to download, {_mib(need_bytes)}")
    hub.download(repository, snapshot=snapshot, destination=destination)
    incomplete = snapshot.missing_in(destination)
    if incomplete:
        words = f"{source}: {', '.join(incomplete)} did not arrive in full; the download is repeated"
        raise FetchError(words, exit_code=FetchExit.RETRY)
    _say(f"downloaded {_mib(need_bytes)} in {time.monotonic() - started:.1f} s")
    return snapshot


def _disk_full(error: OSError) -> str:
    return f"no space left for the model ({error.strerror}): give the volume or the pod's ephemeral storage more room"


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"


def _say(words: str) -> None:
    sys.stderr.write(f"modelfleet-engine fetch: {words}\n")
    sys.stderr.flush()
