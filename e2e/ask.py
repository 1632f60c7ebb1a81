"""Asks a model over its OpenAI API and streams the answer. Runs inside a pod, so: standard library only.

Usage: ask.py BASE_URL [QUESTION [MODEL]], by default the first model that the URL lists. Without a question: a chat
that reads lines until the end of input.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from typing import Any

Message = dict[str, str]


def stream(base_url: str, *, messages: list[Message], model: str | None = None) -> str:
    """Prints the answer token by token, then what it cost; returns the whole answer."""
    body = {"model": model or served_model(base_url), "messages": messages, "stream": True, "temperature": 0}
    body |= {"max_tokens": 200, "stream_options": {"include_usage": True}}
    request = urllib.request.Request(
        f"{base_url}/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    answer: list[str] = []
    usage: dict[str, Any] = {}
    started = time.monotonic()
    first_seconds: float | None = None
    with urllib.request.urlopen(request, timeout=120) as response:
        for line in response:
            payload = line.decode().strip().removeprefix("data: ")
            if not payload or payload.startswith(":") or payload == "[DONE]":
                continue
            event = json.loads(payload)
            if "error" in event:
                raise SystemExit(f"\nerror: {event['error']['message']}")
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                piece = choice["delta"].get("content") or ""
                if piece and first_seconds is None:
                    first_seconds = time.monotonic() - started
                answer.append(piece)
                print(piece, end="", flush=True)
    total_seconds = time.monotonic() - started
    print(
        f"\n  [{usage.get('completion_tokens', 0)} tokens in {total_seconds:.2f} s, "
        f"first after {(first_seconds or 0) * 1000:.0f} ms]",
        flush=True,
    )
    return "".join(answer)


def served_model(base_url: str) -> str:
    """The first model the URL lists."""
    with urllib.request.urlopen(f"{base_url}/models", timeout=30) as response:
        return str(json.load(response)["data"][0]["id"])


def chat(base_url: str) -> None:
    """One conversation; an empty line or the end of input leaves it."""
    messages: list[Message] = []
    print("Type a message; an empty line ends the chat.", flush=True)
    while True:
        print("> ", end="", flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        messages.append({"role": "user", "content": line})
        messages.append({"role": "assistant", "content": stream(base_url, messages=messages)})


def main() -> None:
    """Entry point of the pod."""
    if len(sys.argv) > 2:
        model = sys.argv[3] if len(sys.argv) > 3 else None
        stream(sys.argv[1], messages=[{"role": "user", "content": sys.argv[2]}], model=model)
    else:
        chat(sys.argv[1])


if __name__ == "__main__":
    main()
