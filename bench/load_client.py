"""The load generator: `python -m bench.load_client`, a `LoadJob` on stdin, request records on stdout.

A process of its own, so that its interpreter is no server's. Speaks HTTP and server-sent events directly: a client
library would cost more CPU than a small model's step. Measures, judges each answer's length, decides nothing.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import orjson

from bench.load_job import Chat, LoadJob, RequestRecord, records_to_json

_DATA = b"data: "
_DONE = b"[DONE]"


class AnswerError(Exception):
    """The server's answer is not what was asked for."""


async def run_job(job: LoadJob) -> list[RequestRecord]:
    """Runs the closed loop and returns one record per request, in order of completion."""
    timeout = aiohttp.ClientTimeout(total=job.timeout_seconds)
    # A connection per request: llama.cpp's server closes the ones it was asked to keep.
    connector = aiohttp.TCPConnector(limit=job.concurrency, force_close=True)
    async with aiohttp.ClientSession(base_url=job.base_url, timeout=timeout, connector=connector) as session:
        run = _Run(job, session)
        queue: Iterator[Chat | tuple[int, ...]] = iter(job.chats or job.prompts)
        await asyncio.gather(*(run.work(queue) for _ in range(job.concurrency)))
    return run.records


class _Run:
    def __init__(self, job: LoadJob, session: aiohttp.ClientSession) -> None:
        self._job = job
        self._session = session
        self._started = time.perf_counter()
        self.records: list[RequestRecord] = []

    async def work(self, queue: Iterator[Chat | tuple[int, ...]]) -> None:
        """One worker: takes from the shared queue until it is empty."""
        for item in queue:
            if isinstance(item, Chat):
                await self._chat(item)
            else:
                await self._request("/v1/completions", {"prompt": item})

    async def _chat(self, chat: Chat) -> None:
        messages = [{"role": "system", "content": chat.system}]
        for message in chat.user_messages:
            messages.append({"role": "user", "content": message})
            answer = await self._request("/v1/chat/completions", {"messages": messages})
            if answer is None:
                return
            messages.append({"role": "assistant", "content": answer})

    async def _request(self, path: str, body: dict[str, Any]) -> str | None:
        """Sends one request and records it; returns the answer's text, None when it failed."""
        answer = _Answer(self._job.output_tokens)
        sent = self._now()
        failure: str | None = None
        try:
            async for event in self._events(path, body):
                answer.add(event, now=self._now())
            answer.check()
        except (AnswerError, aiohttp.ClientError, TimeoutError) as error:
            failure = f"{type(error).__name__}: {error}"[:300]
        self.records.append(answer.record(sent_seconds=sent, finished_seconds=self._now(), failure=failure))
        return answer.text if failure is None else None

    async def _events(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        payload = {
            "model": self._job.model,
            "max_tokens": self._job.output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **body,
        }
        headers = {"Content-Type": "application/json"}
        async with self._session.post(path, data=orjson.dumps(payload), headers=headers) as response:
            if response.status != 200:
                raise AnswerError(f"HTTP {response.status}: {(await response.text())[:200]}")
            async for line in response.content:
                if line.startswith(_DATA):
                    data = line[len(_DATA) :].strip()
                    if data == _DONE:
                        return
                    yield orjson.loads(data)
        raise AnswerError("the stream ended without [DONE]")

    def _now(self) -> float:
        return time.perf_counter() - self._started


class _Answer:
    """Collects one stream."""

    def __init__(self, expected_tokens: int) -> None:
        self._expected_tokens = expected_tokens
        self._pieces: list[str] = []
        self._arrivals: list[float] = []
        self._usage: dict[str, Any] = {}
        self._is_finished = False

    def add(self, event: dict[str, Any], *, now: float) -> None:
        """Takes one event. Raises AnswerError if it is the server's error."""
        if "error" in event:
            raise AnswerError(str(event["error"])[:200])
        for choice in event.get("choices") or ():
            text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
            if text:
                self._pieces.append(text)
                self._arrivals.append(now)
            self._is_finished = self._is_finished or choice.get("finish_reason") is not None
        self._usage = event.get("usage") or self._usage

    def check(self) -> None:
        """Raises AnswerError unless the answer is whole and of the asked length."""
        tokens = self._usage.get("completion_tokens", 0)
        if not self._is_finished:
            raise AnswerError("no finish reason")
        if tokens != self._expected_tokens:
            raise AnswerError(f"{tokens} tokens, {self._expected_tokens} were asked for")
        if not 0 < len(self._arrivals) <= tokens:
            raise AnswerError(f"{len(self._arrivals)} chunks with text for {tokens} tokens")

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def record(self, *, sent_seconds: float, finished_seconds: float, failure: str | None) -> RequestRecord:
        """What the job answers for this request."""
        details = self._usage.get("prompt_tokens_details") or {}
        return RequestRecord(
            sent_seconds=sent_seconds,
            finished_seconds=finished_seconds,
            arrivals_seconds=tuple(self._arrivals),
            prompt_tokens=self._usage.get("prompt_tokens", 0),
            cached_tokens=details.get("cached_tokens") or 0,
            completion_tokens=self._usage.get("completion_tokens", 0),
            failure=failure,
        )


def main() -> int:
    """Reads the job, runs it, writes the records."""
    job = LoadJob.from_json(sys.stdin.read())
    sys.stdout.write(records_to_json(asyncio.run(run_job(job))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
