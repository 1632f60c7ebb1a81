"""What an answer cost in tokens: by the engine's own word where there is one, else by what was seen of it. PURE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from modelfleet_gateway.call import Call


class Usage(NamedTuple):
    """OpenAI's usage object; None for what it does not say."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None


def read_usage(found: object) -> Usage:
    """Of an object from an engine, whatever it holds."""
    if not isinstance(found, Mapping):
        return Usage()
    details = found.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
    return Usage(_count(found.get("prompt_tokens")), _count(found.get("completion_tokens")), _count(cached))


def usage_of_answer(body: bytes) -> Usage:
    """Of a whole answer's JSON."""
    try:
        parsed: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return Usage()
    return read_usage(parsed.get("usage")) if isinstance(parsed, dict) else Usage()


def bill(call: Call, usage: Usage, *, fallback_tokens: int) -> None:
    """Notes what the call has used, for its quota, the log, the figures and later estimates."""
    prompt, completion, cached = usage
    if prompt is None or completion is None:
        call.used_tokens = fallback_tokens
        return
    call.used_tokens = prompt + completion
    record, statistics = call.record, call.pool.statistics
    record.prompt_tokens, record.completion_tokens, record.cached_tokens = prompt, completion, cached
    statistics.cached_tokens += cached or 0
    statistics.completion_tokens += completion
    if prompt and call.prompt_characters:
        call.pool.book.learn_ratio(call.job.model, characters=call.prompt_characters, tokens=prompt)


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
