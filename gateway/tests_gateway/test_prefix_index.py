"""What each pod is believed to have cached."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from modelfleet_gateway.prefix_index import PrefixIndex

CHAT = tuple(f"chat-{number}" for number in range(4))
CODE = tuple(f"code-{number}" for number in range(4))
PODS = ("a", "b", "c")


def test_a_pod_matches_the_leading_blocks_of_what_it_was_sent() -> None:
    index = PrefixIndex(100)
    index.record("a", 0, CHAT[:2])
    index.record("b", 0, CHAT)
    index.record("c", 0, CODE)
    assert index.matches((*CHAT, "more"), (*PODS, "stranger")) == {"a": 2, "b": 4, "c": 0, "stranger": 0}


def test_only_the_pods_asked_for_are_answered() -> None:
    index = PrefixIndex(100)
    index.record("a", 0, CHAT)
    index.record("b", 0, CHAT)
    assert index.matches(CHAT, ["b"]) == {"b": 4}
    assert index.matches((), PODS) == {"a": 0, "b": 0, "c": 0}


def test_a_full_index_loses_the_ends_of_old_prompts_first() -> None:
    index = PrefixIndex(6)
    index.record("a", 0, CHAT)
    index.record("a", 0, CODE)
    assert index.matches(CHAT, ["a"]) == {"a": 2}
    assert index.matches(CODE, ["a"]) == {"a": 4}
    index.record("a", 0, CHAT)
    assert index.matches(CHAT, ["a"]) == {"a": 4}
    assert index.matches(CODE, ["a"]) == {"a": 2}


def test_a_prompt_longer_than_the_index_is_known_by_its_beginning() -> None:
    index = PrefixIndex(2)
    index.record("a", 0, CHAT)
    assert index.matches(CHAT, ["a"]) == {"a": 2}


def test_a_restart_of_the_container_drops_what_the_pod_had() -> None:
    index = PrefixIndex(100)
    index.record("a", 0, CHAT)
    index.record("a", 1, CODE)
    assert index.matches(CHAT, ["a"]) == {"a": 0}
    assert index.matches(CODE, ["a"]) == {"a": 4}


def test_events_correct_the_guess() -> None:
    index = PrefixIndex(100)
    index.record("a", 0, CHAT)
    index.apply("a", snapshot=False, stored=CODE[:2], evicted=(*CHAT[2:], "never heard of"))
    assert index.matches(CHAT, ["a"]) == {"a": 2}
    assert index.matches(CODE, ["a"]) == {"a": 2}


def test_a_snapshot_replaces_the_guess() -> None:
    index = PrefixIndex(100)
    index.record("a", 0, CHAT)
    index.apply("a", snapshot=True, stored=CODE, evicted=())
    assert index.matches(CHAT, ["a"]) == {"a": 0}
    assert index.matches(CODE, ["a"]) == {"a": 4}


def test_a_hole_ends_the_match() -> None:
    index = PrefixIndex(100)
    index.record("a", 0, CHAT)
    index.apply("a", snapshot=False, stored=(), evicted=CHAT[1:2])
    assert index.matches(CHAT, ["a"]) == {"a": 1}


def test_a_forgotten_pod_leaves_nothing_to_the_next() -> None:
    index = PrefixIndex(100)
    index.record("a", 0, CHAT)
    index.forget("a")
    index.forget("a")
    index.record("b", 0, CODE)
    assert index.matches(CHAT, ["a", "b"]) == {"a": 0, "b": 0}
    assert index.blocks_of("a") == 0
    assert index.blocks_of("b") == 4


@given(pods=st.integers(1, 130), depth=st.integers(0, 8))
def test_more_pods_than_bits_of_a_machine_word_are_told_apart(pods: int, depth: int) -> None:
    index = PrefixIndex(100)
    uids = [f"pod-{number}" for number in range(pods)]
    for number, uid in enumerate(uids):
        index.record(uid, 0, CHAT[: (number + depth) % 5])
    assert index.matches(CHAT, uids) == {uid: (number + depth) % 5 for number, uid in enumerate(uids)}


class AgainstPlainLists(RuleBasedStateMachine):
    """The same as a list of blocks per pod, most recent last, searched from the first block on."""

    CAPACITY = 5

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(self.CAPACITY)
        self.held: dict[str, list[str]] = {}
        self.restarts: dict[str, int] = {}

    def store(self, uid: str, blocks: tuple[str, ...]) -> None:
        held = self.held.setdefault(uid, [])
        for block in reversed(blocks[: self.CAPACITY]):
            if block in held:
                held.remove(block)
            held.append(block)
        del held[: -self.CAPACITY]

    @rule(uid=st.sampled_from(PODS), restarts=st.integers(0, 1), length=st.integers(0, 4), code=st.booleans())
    def record(self, uid: str, restarts: int, length: int, code: bool) -> None:
        blocks = (CODE if code else CHAT)[:length]
        self.index.record(uid, restarts, blocks)
        if self.restarts.get(uid, restarts) != restarts:
            self.held[uid] = []
        self.restarts[uid] = restarts
        self.store(uid, blocks)

    @rule(
        uid=st.sampled_from(PODS),
        snapshot=st.booleans(),
        stored=st.lists(st.sampled_from(CHAT + CODE), max_size=4, unique=True),
        evicted=st.lists(st.sampled_from(CHAT + CODE), max_size=4, unique=True),
    )
    def apply(self, uid: str, snapshot: bool, stored: list[str], evicted: list[str]) -> None:
        self.index.apply(uid, snapshot=snapshot, stored=stored, evicted=evicted)
        before = [] if snapshot else self.held.get(uid, [])
        self.held[uid] = [block for block in before if block not in evicted]
        self.store(uid, tuple(stored))

    @rule(uid=st.sampled_from(PODS))
    def forget(self, uid: str) -> None:
        self.index.forget(uid)
        self.held.pop(uid, None)
        self.restarts.pop(uid, None)

    @invariant()
    def matches_are_the_leading_blocks_held(self) -> None:
        for blocks in (CHAT, CODE):
            expected = {}
            for uid in PODS:
                missing = [k for k, block in enumerate(blocks) if block not in self.held.get(uid, [])]
                expected[uid] = missing[0] if missing else len(blocks)
            assert self.index.matches(blocks, PODS) == expected

    @invariant()
    def no_pod_holds_more_than_the_capacity(self) -> None:
        for uid in PODS:
            assert self.index.blocks_of(uid) == len(self.held.get(uid, [])) <= self.CAPACITY


TestAgainstPlainLists = AgainstPlainLists.TestCase
