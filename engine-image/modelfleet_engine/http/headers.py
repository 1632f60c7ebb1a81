"""What a generation request says in its headers: how long it may take, whose cache it is, what to report.

Pure: headers and the time of arrival in, a frozen value out. Wrong values are the client's error, named by header.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from modelfleet_api.protocol import HEADER_PREFIX, HEADER_REQUEST_TIMEOUT, HEADER_SALT, HEADER_USAGE

from modelfleet_engine.errors import RequestError

# A day; what needs longer is a batch job.
MAX_TIMEOUT_SECONDS = 86_400.0
# Visible ASCII: it is compared and hashed, never shown.
SALT_PATTERN = "^[!-~]{0,256}$"
MAX_PREFIX_HASHES = 512
MAX_PREFIX_HASH_CHARACTERS = 64
# Name and value of the longest header that is read: as many hashes as may be, each with a comma and a space.
MAX_HEADER_BYTES = len(HEADER_PREFIX) + MAX_PREFIX_HASHES * (MAX_PREFIX_HASH_CHARACTERS + 2)
_PREFIX_HASH = f"[0-9A-Za-z_-]{{1,{MAX_PREFIX_HASH_CHARACTERS}}}"
PREFIX_HASHES_PATTERN = f"^({_PREFIX_HASH}(, ?{_PREFIX_HASH}){{0,{MAX_PREFIX_HASHES - 1}}})?$"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallHeaders:
    """`deadline_seconds` is on the monotonic clock of `arrived_seconds`; the rest as `request.GenerationRequest`."""

    deadline_seconds: float | None = None
    cache_salt: str = ""
    prefix_hashes: tuple[str, ...] = ()
    wants_usage_comment: bool = False


def read_call_headers(headers: Mapping[str, str], *, arrived_seconds: float) -> CallHeaders:
    """Checks and reads the headers of one request.

    Raises:
        RequestError: 400 that names the header.
    """
    timeout = headers.get(HEADER_REQUEST_TIMEOUT)
    return CallHeaders(
        deadline_seconds=None if timeout is None else arrived_seconds + _timeout_seconds(timeout),
        cache_salt=_salt(headers.get(HEADER_SALT, "")),
        prefix_hashes=_prefix_hashes(headers.get(HEADER_PREFIX, "")),
        wants_usage_comment=_is_usage_wanted(headers.get(HEADER_USAGE, "0")),
    )


def _timeout_seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_TIMEOUT_SECONDS:
        raise _refusal(HEADER_REQUEST_TIMEOUT, f"must be a number of seconds above 0, at most {MAX_TIMEOUT_SECONDS:g}")
    return seconds


def _salt(value: str) -> str:
    if not re.fullmatch(SALT_PATTERN, value):
        raise _refusal(HEADER_SALT, "must be at most 256 visible ASCII characters")
    return value


def _prefix_hashes(value: str) -> tuple[str, ...]:
    if not re.fullmatch(PREFIX_HASHES_PATTERN, value):
        raise _refusal(
            HEADER_PREFIX,
            f"must be at most {MAX_PREFIX_HASHES} hashes of at most {MAX_PREFIX_HASH_CHARACTERS} letters, digits, "
            "- or _, separated by commas",
        )
    return tuple(part.strip() for part in value.split(",")) if value else ()


def _is_usage_wanted(value: str) -> bool:
    if value not in ("0", "1"):
        raise _refusal(HEADER_USAGE, "must be 0 or 1")
    return value == "1"


def _refusal(header: str, rule: str) -> RequestError:
    # The value itself may be secret (a salt) or long.
    return RequestError(f"{header}: {rule}.", param=header, code="invalid_header")
