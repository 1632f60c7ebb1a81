"""`/tokenize` and `/detokenize`: vLLM's shape, the tokens a prompt gets, and bounds."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from modelfleet_engine.http.app import build_app
from modelfleet_engine.http.tokenize import MAX_PENDING_CALLS
from modelfleet_engine.serving import Serving

from tests_engine.serving_here import MAX_MODEL_LEN, serving_here
from tests_engine.tiny_model import BOS, EOS_ID, encode, write_tiny_model

HELLO = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def serving(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving_here(write_tiny_model(tmp_path / "tiny")) as (serving, _):
        yield serving


@pytest.fixture
async def client(serving: Serving) -> AsyncIterator[TestClient[Any, Any]]:
    async with TestClient(TestServer(build_app(serving))) as client:
        yield client


async def _post(client: TestClient[Any, Any], path: str, body: object) -> tuple[int, Any]:
    answer = await client.post(path, json=body)
    return answer.status, await answer.json()


async def test_a_text_is_answered_with_its_tokens(client: TestClient[Any, Any]) -> None:
    answer = await _post(client, "/tokenize", {"model": "tiny", "prompt": "aé"})

    assert answer == (
        200,
        {"count": 3, "max_model_len": MAX_MODEL_LEN, "tokens": list(encode("aé")), "token_strs": None},
    )


async def test_tokens_are_spelled_as_the_vocabulary_does_where_that_is_wanted(client: TestClient[Any, Any]) -> None:
    _, answer = await _post(client, "/tokenize", {"prompt": "a é", "return_token_strs": True})

    assert answer["token_strs"] == ["a", "Ġ", "Ã", "©"]


async def test_a_conversation_has_the_tokens_that_a_chat_is_billed_for(client: TestClient[Any, Any]) -> None:
    _, tokens = await _post(client, "/tokenize", {"messages": HELLO})
    _, bare = await _post(client, "/tokenize", {"messages": HELLO, "add_generation_prompt": False})
    _, chat = await _post(client, "/v1/chat/completions", {"model": "tiny", "messages": HELLO, "max_tokens": 1})

    assert tokens["count"] == chat["usage"]["prompt_tokens"]
    assert tokens["count"] - bare["count"] == len(encode(f"{BOS}assistant\n"))


async def test_tokens_become_the_text_they_came_from_special_ones_included(client: TestClient[Any, Any]) -> None:
    _, tokens = await _post(client, "/tokenize", {"messages": HELLO})
    answer = await _post(client, "/detokenize", {"model": "tiny", "tokens": tokens["tokens"]})

    assert answer == (200, {"prompt": "<|start|>user\nhi<|end|>\n<|start|>assistant\n"})


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": HELLO}, 400, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "n": 1}, 400, "n"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model"),
        ("/tokenize", {"prompt": "a" * (MAX_MODEL_LEN * 13 + 1)}, 400, "prompt"),
        ("/tokenize", {"messages": [{"role": "user", "content": "a" * (MAX_MODEL_LEN * 13 + 1)}]}, 400, "messages"),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": [EOS_ID + 2]}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": [2**40]}, 400, "tokens"),
        ("/detokenize", {"tokens": [1] * (MAX_MODEL_LEN + 1)}, 400, "tokens"),
        ("/detokenize", {"tokens": [1], "model": "other"}, 404, "model"),
    ],
)
async def test_a_bad_body_is_refused_by_the_name_of_its_field(
    client: TestClient[Any, Any], path: str, body: object, status: int, param: str
) -> None:
    answer = await _post(client, path, body)

    assert (answer[0], answer[1]["error"]["param"]) == (status, param)


async def test_no_tokens_are_no_text(client: TestClient[Any, Any]) -> None:
    assert await _post(client, "/detokenize", {"tokens": []}) == (200, {"prompt": ""})


async def test_only_so_many_calls_wait_and_probes_never_do(client: TestClient[Any, Any], serving: Serving) -> None:
    gate = threading.Event()
    serving.tokenizer_pool.submit(gate.wait)
    waiting = [asyncio.create_task(_post(client, "/tokenize", {"prompt": "a"})) for _ in range(MAX_PENDING_CALLS + 1)]
    done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    health = await client.get("/health")
    gate.set()

    ((status, body),) = [task.result() for task in done]
    assert (status, body["error"]["code"], health.status) == (429, "queue_full", 200)
    assert [task_status for task_status, _ in await asyncio.gather(*pending)] == [200] * MAX_PENDING_CALLS
    assert (await _post(client, "/tokenize", {"prompt": "a"}))[0] == 200
