"""The prompts of every scenario: seeded, the same for all servers, new in every round so that no cache knows them."""

from __future__ import annotations

import random

from bench.load_job import Chat

# SmolLM2's special tokens lie below, its vocabulary ends above.
FIRST_TOKEN_ID = 1_000
LAST_TOKEN_ID = 48_000

# Common words, each one or two tokens, so that chats have a known size and mean nothing.
_VOCABULARY = """
    river stone market window garden letter music winter bridge harbor silver engine forest candle mirror planet
    summer travel doctor kitchen village morning evening teacher student history science picture number island
    mountain valley ocean desert castle farmer driver singer writer painter hunter soldier captain station library
"""
_WORDS = tuple(_VOCABULARY.split())


def random_prompts(*, seed: int, count: int, tokens: int) -> tuple[tuple[int, ...], ...]:
    """`count` prompts of `tokens` random token ids."""
    source = random.Random(seed)
    return tuple(tuple(source.randint(FIRST_TOKEN_ID, LAST_TOKEN_ID) for _ in range(tokens)) for _ in range(count))


def shared_system_chats(
    *, seed: int, users: int, turns: int, system_words: int = 320, turn_words: int = 24
) -> tuple[Chat, ...]:
    """Chats of `users` users that share one system prompt and nothing else."""
    source = random.Random(seed)
    system = "You are a helpful assistant. " + _words(source, system_words)
    return tuple(
        Chat(
            system=system,
            user_messages=tuple(f"User {user}: {_words(source, turn_words)}" for _ in range(turns)),
        )
        for user in range(users)
    )


def _words(source: random.Random, count: int) -> str:
    return " ".join(source.choice(_WORDS) for _ in range(count))
