"""The one function that reads the body of a generation request, so that a compiled one can take its place.

PURE. Only what routing, fairness and quotas need is looked at; everything else is the engine's to judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from modelfleet_gateway.errors import GatewayError

# What an answer is expected to have where the request does not say: enters estimates only, never the request.
DEFAULT_OUTPUT_TOKENS = 256
_MAX_PRIORITY = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestBody:
    """One parsed body. `raw` is what the client sent, byte for byte."""

    raw: bytes
    fields: Mapping[str, Any]
    model: str | None
    is_stream: bool
    wants_usage: bool
    priority: int | None
    output_tokens: int
    choices: int


def parse_request_body(raw: bytes) -> RequestBody:
    """Reads what the gateway needs.

    Raises:
        GatewayError: 400, if it is no JSON object or one of those few fields has a wrong type.
    """
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        # Only the reason: the text around it may be somebody's prompt.
        raise GatewayError(400, f"The request body is not valid JSON: {error.msg}.", "invalid_json") from None
    if not isinstance(fields, dict):
        raise GatewayError(400, "The request body must be a JSON object.", "invalid_json")
    options = fields.get("stream_options")
    return RequestBody(
        raw=raw,
        fields=fields,
        model=_text(fields, "model"),
        is_stream=_flag(fields, "stream"),
        wants_usage=isinstance(options, dict) and options.get("include_usage") is True,
        priority=_priority(fields),
        output_tokens=_output_tokens(fields),
        choices=_choices(fields),
    )


def rewritten(body: RequestBody, *, model: str | None, priority: int | None, includes_usage: bool = False) -> bytes:
    """The bytes to send on: what came, or the same object under the engine's name and the priority allowed.

    `includes_usage`: with OpenAI's way to ask for a stream's usage, for engines that know no other.

    Raises:
        GatewayError: 400, it cannot be written.
    """
    changes: dict[str, Any] = {}
    if model is not None and model != body.model:
        changes["model"] = model
    if priority is not None and priority != body.priority:
        changes["priority"] = priority
    if includes_usage:
        options = body.fields.get("stream_options")
        changes["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    if not changes:
        return body.raw
    try:
        return orjson.dumps({**body.fields, **changes})
    except orjson.JSONEncodeError:
        # What can be read can be written, but for depth: orjson reads 1024 levels and writes 254.
        raise GatewayError(400, "The request body is nested too deep.", "invalid_json") from None


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise _wrong_type(name, "a string")
    return value


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise _wrong_type(name, "true or false")
    return value is True


def _priority(fields: Mapping[str, Any]) -> int | None:
    value = fields.get("priority")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not -_MAX_PRIORITY <= value <= _MAX_PRIORITY:
        raise _wrong_type("priority", f"an integer from -{_MAX_PRIORITY} to {_MAX_PRIORITY}")
    return value


def _output_tokens(fields: Mapping[str, Any]) -> int:
    """An estimate: a wrong `max_tokens` is the engine's to refuse."""
    for name in ("max_completion_tokens", "max_tokens"):
        value = fields.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MAX_PRIORITY:
            return value
    return DEFAULT_OUTPUT_TOKENS


def _choices(fields: Mapping[str, Any]) -> int:
    value = fields.get("n")
    return value if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1024 else 1


def _wrong_type(name: str, rule: str) -> GatewayError:
    return GatewayError(400, f"`{name}` must be {rule}.", "invalid_type", param=name)
