"""What the load generator is asked and what it answers: plain data, as JSON between two processes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """One user's conversation: each user message is one request, which carries the whole history."""

    system: str
    user_messages: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadJob:
    """A closed loop: `concurrency` workers take the next prompt or chat as soon as they are free.

    Either `prompts` (token ids, to /v1/completions) or `chats` (to /v1/chat/completions) is given.
    """

    base_url: str
    model: str
    concurrency: int
    output_tokens: int
    prompts: tuple[tuple[int, ...], ...] = ()
    chats: tuple[Chat, ...] = ()
    timeout_seconds: float = 600.0

    def to_json(self) -> str:
        """For the load generator's standard input."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> LoadJob:
        """The inverse of `to_json`."""
        fields = json.loads(text)
        fields["prompts"] = tuple(tuple(prompt) for prompt in fields["prompts"])
        fields["chats"] = tuple(
            Chat(system=chat["system"], user_messages=tuple(chat["user_messages"])) for chat in fields["chats"]
        )
        return cls(**fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request as its client saw it. Times in seconds since the job's start; counts from the server's usage.

    `arrivals_seconds` are the chunks that carried text. `failure` is None for an answer of the asked length.
    """

    sent_seconds: float
    finished_seconds: float
    arrivals_seconds: tuple[float, ...] = ()
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    failure: str | None = None


def records_to_json(records: list[RequestRecord]) -> str:
    """For the load generator's standard output."""
    return json.dumps([asdict(record) for record in records])


def records_from_json(text: str) -> list[RequestRecord]:
    """The inverse of `records_to_json`."""
    records = json.loads(text)
    for record in records:
        record["arrivals_seconds"] = tuple(record["arrivals_seconds"])
    return [RequestRecord(**record) for record in records]
