"""A steady stream of real requests (the `openai` client, no retries) that counts every answer and every failure."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from openai import OpenAI, OpenAIError


@dataclass
class Tally:
    """What the clients saw. A stream that ended without a finish reason is a failure: an answer cut in half."""

    answers: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def record(self, *, failure: str | None) -> None:
        """Counts one request."""
        with self.lock:
            if failure is None:
                self.answers += 1
            else:
                self.failures[failure] += 1


def client(base_url: str) -> OpenAI:
    """The unmodified client, without retries: an error is an error."""
    return OpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=60.0)


def answer(openai: OpenAI, *, question: str, max_tokens: int = 24) -> str:
    """One whole streamed answer; RuntimeError when it ends without a finish reason."""
    model = openai.models.list().data[0].id
    stream = openai.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=max_tokens,
        temperature=0,
        stream=True,
    )
    pieces: list[str] = []
    finish: str | None = None
    for chunk in stream:
        for choice in chunk.choices:
            pieces.append(choice.delta.content or "")
            finish = choice.finish_reason or finish
    if finish is None:
        raise RuntimeError("the stream ended without a finish reason")
    return "".join(pieces)


@contextmanager
def steady(base_url: str, *, clients: int = 2) -> Iterator[Tally]:
    """Keeps `clients` requests in flight while the block runs; the tally is complete after it."""
    tally = Tally()
    stop = threading.Event()

    def drive(number: int) -> None:
        with client(base_url) as openai:
            count = 0
            while not stop.is_set():
                count += 1
                failure: str | None = None
                try:
                    answer(openai, question=f"Count from {number} to {count + 5}.")
                except (OpenAIError, RuntimeError) as error:
                    failure = f"{type(error).__name__}: {error}"
                    time.sleep(0.2)
                tally.record(failure=failure)

    threads = [threading.Thread(target=drive, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield tally
    finally:
        stop.set()
        for thread in threads:
            thread.join()
