"""What is measured: the loads, their sizes and how often; a full and a quick list."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

from bench.load_job import Chat, LoadJob
from bench.prompts import random_prompts, shared_system_chats

Kind = Literal["random", "chats", "cached"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One load. `random`: prompts no cache knows. `chats`: turns over a shared system prompt. `cached`: the same long
    prompts twice, one at a time, for the time to the first token without and with their prefix in the cache.
    """

    name: str
    kind: Kind
    concurrency: int
    # Prompts, users or cold prompts.
    count: int
    input_tokens: int
    output_tokens: int
    turns: int = 1
    rounds: int = 1

    @property
    def uses_prefix_cache(self) -> bool:
        """Whether a server's prefix cache may help; elsewhere a peer may leave it off."""
        return self.kind != "random"

    @property
    def context_tokens(self) -> int:
        """The longest sequence; chats with room for the system prompt and the template."""
        return self.turns * (self.input_tokens + self.output_tokens) + (512 if self.kind == "chats" else 0)

    def job(self, *, base_url: str, model: str, round_number: int) -> LoadJob:
        """One round's job: new prompts every round, the same for every server."""
        # The name makes the seed, so that no two scenarios share a prompt.
        seed = zlib.crc32(f"{self.name} {round_number}".encode())
        chats: tuple[Chat, ...] = ()
        prompts: tuple[tuple[int, ...], ...] = ()
        if self.kind == "chats":
            chats = shared_system_chats(seed=seed, users=self.count, turns=self.turns)
        else:
            prompts = random_prompts(seed=seed, count=self.count, tokens=self.input_tokens)
        if self.kind == "cached":
            prompts = tuple(prompt for prompt in prompts for _ in ("cold", "cached"))
        return LoadJob(
            base_url=base_url,
            model=model,
            concurrency=self.concurrency,
            output_tokens=self.output_tokens,
            prompts=prompts,
            chats=chats,
        )


def random_load(concurrency: int, *, requests_per_worker: int = 4, rounds: int = 1) -> Scenario:
    """256 random tokens in, 64 out."""
    return Scenario(
        name=f"256/64, c={concurrency}",
        kind="random",
        concurrency=concurrency,
        count=requests_per_worker * concurrency,
        input_tokens=256,
        output_tokens=64,
        rounds=rounds,
    )


def scenarios(*, quick: bool) -> tuple[Scenario, ...]:
    """All loads in order; those without a use for a prefix cache first, so that a peer is restarted once."""
    if quick:
        return (
            random_load(1, requests_per_worker=4),
            random_load(8, requests_per_worker=2),
            random_load(32, requests_per_worker=2),
            _chats(users=4, turns=4),
            _cached(prompts=2),
        )
    return (
        random_load(1, rounds=3),
        random_load(8, rounds=2),
        random_load(32),
        random_load(64),
        Scenario(
            name="2048/64, c=4",
            kind="random",
            concurrency=4,
            count=16,
            input_tokens=2048,
            output_tokens=64,
        ),
        _chats(users=8, turns=10),
        _cached(prompts=5),
    )


def _chats(*, users: int, turns: int) -> Scenario:
    return Scenario(
        name=f"chats, {users} users x {turns} turns",
        kind="chats",
        concurrency=users,
        count=users,
        input_tokens=64,
        output_tokens=32,
        turns=turns,
    )


def _cached(*, prompts: int) -> Scenario:
    return Scenario(
        name="2048 cold, then cached",
        kind="cached",
        concurrency=1,
        count=prompts,
        input_tokens=2048,
        output_tokens=4,
    )
