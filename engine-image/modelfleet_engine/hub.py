"""What `fetch` asks of huggingface_hub, and its many errors in words that a person can act on.

Imported only once the library's environment is set. Must not decide where files go or whether they are complete.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import HfApi, constants, get_session, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from modelfleet_engine.fetch import ALLOWED, API_TIMEOUT_SECONDS, IGNORED, FetchError, FetchExit, Snapshot

SECRET_WORDS = "the Secret that model.tokenSecretRef names"


def resolve(repository: str, *, revision: str, source: str) -> Snapshot:
    """The commit that `revision` is now, and the files of it that an engine needs. Raises FetchError."""
    # The library's own default is to wait for ever.
    get_session().timeout = API_TIMEOUT_SECONDS
    with _explained(repository, revision=revision):
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    siblings = {item.rfilename: int(item.size or 0) for item in info.siblings or []}
    files = {name: siblings[name] for name in sorted(siblings) if _is_wanted(name)}
    if not any(name.endswith(".safetensors") for name in files):
        raise FetchError(
            f"{repository} at {revision} has no *.safetensors: other weight formats are not loaded",
            exit_code=FetchExit.REFUSED,
        )
    return Snapshot(source=source, commit=str(info.sha), files=files)


def download(repository: str, *, snapshot: Snapshot, destination: Path) -> None:
    """Downloads what of the snapshot is not in `destination` yet. Raises FetchError, and OSError of the disk."""
    with _explained(repository, revision=snapshot.commit):
        snapshot_download(
            repository,
            revision=snapshot.commit,
            local_dir=destination,
            allow_patterns=list(snapshot.files),
            ignore_patterns=list(IGNORED),
            max_workers=4,
        )


def _is_wanted(name: str) -> bool:
    is_allowed = any(fnmatchcase(name, pattern) for pattern in ALLOWED)
    return is_allowed and not any(fnmatchcase(name, pattern) for pattern in IGNORED)


@contextmanager
def _explained(repository: str, *, revision: str) -> Iterator[None]:
    """Turns the library's errors into FetchErrors; leaves the disk's OSErrors alone."""
    try:
        yield
    except HfHubHTTPError as error:
        raise _http_error(repository, revision=revision, error=error) from error
    except HFValidationError as error:
        raise _refused(f"{repository} is no name of a model: {_one_line(error)}") from error
    except LocalEntryNotFoundError as error:
        # The library's words for "could not ask the hub"; the cause says why.
        if isinstance(error.__cause__, HfHubHTTPError):
            raise _http_error(repository, revision=revision, error=error.__cause__) from error
        raise _network_error(error) from error
    except OSError:
        raise
    except Exception as error:
        # The HTTP library's own errors: which library that is changes between versions of huggingface_hub.
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3")):
            raise
        raise _network_error(error) from error


def _http_error(repository: str, *, revision: str, error: HfHubHTTPError) -> FetchError:
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return _refused(
            f"{repository} is gated ({status}): accept its terms on the hub with the account whose token is in "
            f"{SECRET_WORDS}{_without_token()}"
        )
    if isinstance(error, RepositoryNotFoundError):
        return _refused(
            f"{repository} does not exist on {_hub()}, or is private ({status}): check model.source, and for a "
            f"private model {SECRET_WORDS}{_without_token()}"
        )
    if isinstance(error, RevisionNotFoundError):
        return _refused(f"{repository} has no revision {revision} on {_hub()}: check what follows @ in model.source")
    if status in (401, 403):
        return _refused(f"{_hub()} refuses access to {repository} ({status}): check {SECRET_WORDS}{_without_token()}")
    if status in (408, 425, 429) or status >= 500:
        return FetchError(f"{_hub()} answered {status} for {repository}: tried again", exit_code=FetchExit.RETRY)
    return _refused(f"{_hub()} answered {status} for {repository}: {_one_line(error)}")


def _network_error(error: Exception) -> FetchError:
    return FetchError(f"{_hub()} cannot be reached: {_one_line(error)}; tried again", exit_code=FetchExit.RETRY)


def _refused(message: str) -> FetchError:
    return FetchError(message, exit_code=FetchExit.REFUSED)


def _hub() -> str:
    return str(constants.ENDPOINT)


def _without_token() -> str:
    return "" if os.environ.get("HF_TOKEN") else " (no token was given)"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400]
