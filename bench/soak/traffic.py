"""What the soak's clients send and how they judge what came back. Every request ends in exactly one `Outcome`."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import aiohttp

# A shared beginning, so that the prefix cache is hit, evicted and hit again.
SYSTEM_PROMPT = "You are a careful assistant. Answer in plain words. " * 12
MODEL = "soak"
# No request of this load may take longer; one that does was lost.
LOST_AFTER_SECONDS = 300.0
BAD_SHARE = 0.05
DISCONNECT_SHARE = 0.15


class Outcome(StrEnum):
    """How one request ended. Those of `VIOLATIONS` must never happen."""

    ANSWERED = "answered"
    TOLD_FULL = "refused: queue full"
    TOLD_DEADLINE = "told: its deadline passed"
    BAD_REFUSED = "bad request refused"
    DISCONNECTED = "client went away"
    BAD_ACCEPTED = "bad request accepted"
    INCOMPLETE = "answer incomplete"
    SERVER_ERROR = "unexplained error"
    LOST = "no end within the limit"


VIOLATIONS = frozenset({Outcome.BAD_ACCEPTED, Outcome.INCOMPLETE, Outcome.SERVER_ERROR, Outcome.LOST})


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRequest:
    """One request of the load: what is sent, and what its client does while it runs."""

    path: str
    body: bytes
    headers: dict[str, str]
    choices: int
    is_stream: bool
    is_bad: bool
    # The client goes away after so long; None: it stays.
    disconnect_after_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """An outcome and, where it is a violation, what was seen."""

    outcome: Outcome
    detail: str = ""


def plan_request(dice: random.Random, *, longest_prompt_tokens: int, vocab_size: int) -> PlannedRequest:
    """A random request; the same dice make the same load."""
    if dice.random() < BAD_SHARE:
        return _bad_request(dice, longest_prompt_tokens=longest_prompt_tokens, vocab_size=vocab_size)
    body: dict[str, Any] = {"model": MODEL, "max_tokens": dice.randint(1, 160), "temperature": dice.choice([0, 0.8])}
    headers: dict[str, str] = {}
    if dice.random() < 0.5:
        path = "/v1/chat/completions"
        question = " ".join(f"word{dice.randint(0, 500)}" for _ in range(dice.randint(3, 60)))
        body["messages"] = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": question}]
    else:
        path = "/v1/completions"
        # Long ones are rare, as in life, but they are there.
        length = min(longest_prompt_tokens, int(dice.lognormvariate(4.5, 1.0)) + 1)
        body["prompt"] = [dice.randrange(vocab_size) for _ in range(length)]
        body["ignore_eos"] = dice.random() < 0.7
    if dice.random() < 0.15:
        body["n"] = dice.randint(2, 3)
    if dice.random() < 0.1:
        body["logprobs"] = True if path.startswith("/v1/chat") else 2
    if dice.random() < 0.2:
        body["priority"] = dice.randint(-2, 2)
    if dice.random() < 0.1:
        headers["x-request-timeout"] = str(round(dice.uniform(0.2, 5.0), 2))
    if dice.random() < 0.3:
        headers["x-modelfleet-salt"] = dice.choice(["one", "two"])
    body["stream"] = dice.random() < 0.6
    leaves = dice.random() < DISCONNECT_SHARE
    return PlannedRequest(
        path=path,
        body=json.dumps(body).encode(),
        headers=headers,
        choices=body.get("n", 1),
        is_stream=body["stream"],
        is_bad=False,
        disconnect_after_seconds=dice.uniform(0, 2) if leaves else None,
    )


def _bad_request(dice: random.Random, *, longest_prompt_tokens: int, vocab_size: int) -> PlannedRequest:
    """One of the mistakes that clients make."""
    fine: dict[str, Any] = {"model": MODEL, "prompt": "hello", "max_tokens": 4}
    bodies: list[bytes] = [
        b'{"model": "soak", "prompt": "cut off',
        b"[]",
        json.dumps({**fine, "model": "another"}).encode(),
        json.dumps({**fine, "no_such_field": 1}).encode(),
        json.dumps({**fine, "temperature": -1}).encode(),
        json.dumps({**fine, "n": 10_000}).encode(),
        json.dumps({**fine, "prompt": [vocab_size + 7]}).encode(),
        json.dumps({**fine, "prompt": [1] * (longest_prompt_tokens * 4)}).encode(),
        json.dumps({**fine, "stop": [""]}).encode(),
    ]
    return PlannedRequest(
        path="/v1/completions",
        body=dice.choice(bodies),
        headers={},
        choices=1,
        is_stream=False,
        is_bad=True,
        disconnect_after_seconds=None,
    )


async def send(session: aiohttp.ClientSession, base_url: str, planned: PlannedRequest) -> Ended:
    """Sends one request and judges its end."""
    limit = planned.disconnect_after_seconds
    try:
        async with asyncio.timeout(LOST_AFTER_SECONDS if limit is None else limit):
            return await _exchange(session, base_url, planned)
    except TimeoutError:
        return Ended(outcome=Outcome.LOST if limit is None else Outcome.DISCONNECTED, detail=planned.path)
    except aiohttp.ClientError as error:
        return Ended(outcome=Outcome.SERVER_ERROR, detail=f"{type(error).__name__}: {error}")


async def _exchange(session: aiohttp.ClientSession, base_url: str, planned: PlannedRequest) -> Ended:
    headers = {"Content-Type": "application/json", **planned.headers}
    async with session.post(base_url + planned.path, data=planned.body, headers=headers) as response:
        return judge(planned, status=response.status, text=(await response.read()).decode())


def judge(planned: PlannedRequest, *, status: int, text: str) -> Ended:
    """How a request ended whose answer has ended."""
    if planned.is_bad:
        is_refused = 400 <= status < 500 and status != 429
        return Ended(outcome=Outcome.BAD_REFUSED if is_refused else Outcome.BAD_ACCEPTED, detail=text[:200])
    if status != 200:
        return _judge_refusal(status, text)
    return _judge_stream(text, planned) if planned.is_stream else _judge_whole(text, planned)


def _judge_refusal(status: int, text: str) -> Ended:
    code = json.loads(text)["error"]["code"]
    if status == 429:
        return Ended(outcome=Outcome.TOLD_FULL)
    if code == "deadline_exceeded":
        return Ended(outcome=Outcome.TOLD_DEADLINE)
    return Ended(outcome=Outcome.SERVER_ERROR, detail=f"{status} {text[:200]}")


def _judge_whole(text: str, planned: PlannedRequest) -> Ended:
    choices = json.loads(text)["choices"]
    reasons = [choice["finish_reason"] for choice in choices]
    is_whole = len(reasons) == planned.choices and set(reasons) <= {"stop", "length"}
    return Ended(outcome=Outcome.ANSWERED if is_whole else Outcome.INCOMPLETE, detail=f"finish reasons {reasons}")


def _judge_stream(text: str, planned: PlannedRequest) -> Ended:
    """A stream is whole when every choice has a reason and it says [DONE]; or it says why it is not."""
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    ended: set[int] = set()
    for event in data:
        if event == "[DONE]":
            break
        value = json.loads(event)
        if "error" in value:
            told = value["error"]["code"] == "deadline_exceeded"
            return Ended(outcome=Outcome.TOLD_DEADLINE if told else Outcome.SERVER_ERROR, detail=event[:200])
        ended |= {choice["index"] for choice in value["choices"] if choice["finish_reason"]}
    is_whole = data[-1:] == ["[DONE]"] and ended == set(range(planned.choices))
    return Ended(outcome=Outcome.ANSWERED if is_whole else Outcome.INCOMPLETE, detail=f"ended {ended}: {text[-120:]}")
