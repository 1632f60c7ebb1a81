"""The whole engine with the real demo model: a server process, the `openai` client, greedy answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from modelfleet_api.protocol import Load

from tests_engine.model_fixtures import demo_model_dir  # noqa: F401 - a fixture
from tests_engine.server_process import REAL, ServerProcess, running

pytestmark = pytest.mark.model

QUESTIONS = [
    "What is the capital of France?",
    "Name three colours.",
    "Write a haiku about the sea.",
    "What is 2 + 2?",
    "Who wrote Hamlet?",
    "What is the boiling point of water?",
    "Say hello in Spanish.",
    "What do bees make?",
]


@pytest.fixture(scope="module")
def server(demo_model_dir: Path) -> Iterator[ServerProcess]:  # noqa: F811
    arguments = (str(demo_model_dir), "--port", "0", "--served-model-name", "smol", "--max-model-len", "512")
    with running(REAL, arguments) as process:
        process.event("ready", timeout_seconds=120)
        yield process


def _answer(server: ServerProcess, question: str, *, max_tokens: int = 40) -> str:
    with server.client() as client:
        answer = client.chat.completions.create(
            model="smol", messages=[{"role": "user", "content": question}], temperature=0, max_tokens=max_tokens
        )
    return answer.choices[0].message.content or ""


async def _streams(
    server: ServerProcess, *, max_tokens: int, questions: Sequence[str] = QUESTIONS
) -> list[tuple[str, int]]:
    async def one(question: str) -> tuple[str, int]:
        chunks = await client.chat.completions.create(
            model="smol",
            messages=[{"role": "user", "content": question}],
            temperature=0,
            max_tokens=max_tokens,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        text, tokens = "", 0
        async for chunk in chunks:
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        return text, tokens

    async with server.async_client() as client:
        return await asyncio.gather(*(one(question) for question in questions))


def test_the_demo_question_is_answered(server: ServerProcess) -> None:
    assert "Paris" in _answer(server, "Please tell me the capital of France in one sentence.")


def test_a_greedy_answer_ends_at_an_end_token_and_repeats_exactly(server: ServerProcess) -> None:
    with server.client() as client:
        answers = [
            client.chat.completions.create(
                model="smol", messages=[{"role": "user", "content": QUESTIONS[0]}], temperature=0
            )
            for _ in range(2)
        ]

    assert answers[0].choices[0].finish_reason == "stop"
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
    assert "<|im_end|>" not in (answers[0].choices[0].message.content or "")


def test_a_seed_repeats_a_drawn_answer_and_its_choices_differ(server: ServerProcess) -> None:
    with server.client() as client:
        first, second = (
            client.completions.create(
                model="smol", prompt="Once upon a time", temperature=1.0, seed=7, n=3, max_tokens=12
            )
            for _ in range(2)
        )

    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in second.choices]
    assert len(set(texts)) == 3


def test_eight_concurrent_streams_share_each_forward_pass(server: ServerProcess) -> None:
    def steps() -> int:
        return Load.model_validate(server.get("/load").json()).counters.steps

    before = steps()
    answers = asyncio.run(_streams(server, max_tokens=60))

    assert [tokens for _, tokens in answers] == [60] * 8
    assert steps() - before <= 1.2 * 60


def test_answers_do_not_change_when_the_cache_is_too_small_for_all(
    demo_model_dir: Path,  # noqa: F811
) -> None:
    # Eight tokens in float32 are 30 layers x 2 x 3 heads x 64 x 8 x 4 bytes = 368,640 bytes. Each of the three streams
    # starts in 5 blocks and ends in 8: all start, not all can stay in 18.
    # With the prefix cache they would share the beginning of their prompts, and fit.
    names = (str(demo_model_dir), "--port", "0", "--served-model-name", "smol")
    common = (*names, "--dtype", "float32", "--no-prefix-caching")
    answers: list[list[tuple[str, int]]] = []
    preemptions: list[int] = []
    for blocks in (64, 18):
        sizes = ("--block-tokens", "8", "--kv-cache-bytes", str(368_640 * blocks), "--max-model-len", "64")
        with running(REAL, (*common, *sizes)) as server:
            server.event("ready", timeout_seconds=120)
            answers.append(asyncio.run(_streams(server, max_tokens=26, questions=QUESTIONS[:3])))
            load = Load.model_validate(server.get("/load").json())
            assert (load.kv_blocks_total, load.kv_blocks_used) == (blocks, 0)
            preemptions.append(load.counters.preemptions)

    assert preemptions[0] == 0
    assert preemptions[1] > 0
    assert answers[0] == answers[1]


def test_a_directory_that_is_no_model_ends_with_code_3_and_says_why(tmp_path: Path) -> None:
    with running(REAL, (str(tmp_path / "nothing"), "--port", "0")) as server:
        assert server.wait(timeout_seconds=60) == 3

    assert server.stderr.count("\n") == 1
    assert "nothing" in server.stderr


def test_the_real_engine_drains_cleanly(demo_model_dir: Path) -> None:  # noqa: F811
    arguments = (str(demo_model_dir), "--port", "0", "--accept-after-sigterm-seconds", "0")
    with running(REAL, arguments) as server:
        server.event("ready", timeout_seconds=120)
        server.terminate()

        assert server.wait() == 0
