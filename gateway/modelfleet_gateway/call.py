"""One admitted generation request: everything the proxy needs to send it on, as often as it takes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from modelfleet_api import protocol

from modelfleet_gateway.access_log import AccessRecord
from modelfleet_gateway.keys import Tenant
from modelfleet_gateway.placement import Job
from modelfleet_gateway.pool import ModelPool

# Of the client's headers these reach an engine: no keys, no cookies, nothing of ours that we did not set.
PASSED_HEADERS = ("Content-Type", "Accept", "traceparent", "tracestate", "baggage")
# Of an engine's headers these do not reach a client: of one connection only, or the gateway's own business.
_DROPPED_ANSWER_HEADERS = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "content-length",
        "date",
        "server",
        protocol.HEADER_REQUEST_ID,
    }
)
_OWN_PREFIX = "x-modelfleet-"


@dataclass(slots=True, kw_only=True)
class Call:
    """What is sent on, for whom, and what came of it so far."""

    path: str
    is_stream: bool
    # As it is sent: perhaps with the engine's name of the model.
    sent_body: bytes
    # To engines that do not speak our protocol; None: the same.
    foreign_body: bytes | None
    sent_headers: Mapping[str, str]
    pool: ModelPool
    tenant: Tenant
    job: Job
    record: AccessRecord
    prompt_characters: int
    estimated_tokens: int
    has_client_deadline: bool
    wants_trace: bool
    used_tokens: int = 0

    def takes_usage_chunk(self, uid: str) -> bool:
        """Whether this engine is asked for its usage in a chunk that the client does not expect."""
        state = self.pool.states.get(uid)
        return self.foreign_body is not None and state is not None and state.is_foreign

    def body_for(self, uid: str) -> bytes:
        """What this engine is sent."""
        foreign = self.foreign_body
        return foreign if foreign is not None and self.takes_usage_chunk(uid) else self.sent_body

    def forget_bodies(self) -> None:
        """An answer has begun, so nothing is sent again: thousands of open streams need not keep their prompts."""
        self.sent_body = b""
        self.foreign_body = None

    def headers(self, *, key: str | None) -> dict[str, str]:
        """For one attempt: what is left of the time is only known now."""
        headers = dict(self.sent_headers)
        if key is not None:
            headers[protocol.HEADER_KEY] = key
        if self.has_client_deadline:
            # Rounded down: never more than there is.
            left_milliseconds = max(1, int((self.job.deadline - time.monotonic()) * 1000))
            headers[protocol.HEADER_REQUEST_TIMEOUT] = f"{left_milliseconds / 1000:.3f}"
        return headers


def sent_headers(
    given: Mapping[str, str], *, request_id: str, salt: str, blocks: tuple[str, ...], is_stream: bool
) -> dict[str, str]:
    """What an engine gets beside the body. `x-modelfleet-*` is ours alone."""
    headers = {name: given[name] for name in PASSED_HEADERS if name in given}
    headers.setdefault("Content-Type", "application/json")
    headers[protocol.HEADER_REQUEST_ID] = request_id
    if salt:
        headers[protocol.HEADER_SALT] = salt
    if blocks:
        headers[protocol.HEADER_PREFIX] = ",".join(blocks)
    if is_stream:
        headers[protocol.HEADER_USAGE] = "1"
    return headers


def answer_headers(given: Mapping[str, str]) -> dict[str, str]:
    """What a client gets of an engine's headers."""
    return {
        name: value
        for name, value in given.items()
        if (lower := name.lower()) not in _DROPPED_ANSWER_HEADERS and not lower.startswith(_OWN_PREFIX)
    }
