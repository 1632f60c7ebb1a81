"""Any interleaving of requests, aborts, deadlines, priorities, groups and salts: exact tokens, and nothing leaks."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from modelfleet_api.protocol import StepTime
from modelfleet_engine.prefix_cache import block_digest, root_digest
from modelfleet_engine.request import FinishReason, GenerationRequest
from modelfleet_engine.scheduler import Scheduler, SchedulerLimits
from modelfleet_engine.step_budget import MINIMUM_PREFILL_TOKENS
from modelfleet_engine.step_time import predict_seconds

from tests_engine.paged_memory import expected_tokens, token_logprobs
from tests_engine.scheduling import MODEL, VOCAB_SIZE, Driver, limits, request

MAX_MODEL_LEN = 40
SALTS = ("", "tenant-a", "tenant-b")
ITL_TARGET_SECONDS = 0.1
STEP_TIME = StepTime(
    base_seconds=0.02,
    per_sequence_seconds=0.002,
    per_prefill_token_seconds=0.003,
    per_kv_token_seconds=0.0001,
    observed_steps=100,
)

_limits = st.builds(
    lambda block_tokens, room, **values: limits(
        block_tokens=block_tokens, kv_blocks=-(-MAX_MODEL_LEN // block_tokens) * room, **values
    ),
    block_tokens=st.sampled_from([1, 4, 16]),
    # From "only one fits" to "some fit".
    room=st.sampled_from([1, 2, 4]),
    seqs=st.sampled_from([1, 3, 6]),
    batched_tokens=st.sampled_from([1, 8, 24]),
    max_model_len=st.just(MAX_MODEL_LEN),
    prefix_caching=st.booleans(),
    itl_target_seconds=st.sampled_from([None, ITL_TARGET_SECONDS]),
)

# From few beginnings and few ends: many prompts share blocks, some are equal, some nearly.
_prompts = st.builds(
    lambda head, tail: head + tail,
    st.sampled_from([(3,), (1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 4, 5, 6, 7, 8, 0), (1,) * 20]),
    st.lists(st.integers(0, 2), max_size=8).map(tuple),
)

_calls = st.fixed_dictionaries(
    {
        "prompt": _prompts,
        "max_tokens": st.integers(1, 12),
        "cache_salt": st.sampled_from(SALTS),
        "priority": st.integers(-1, 1),
        "stop_token_ids": st.sampled_from([frozenset(), frozenset(range(0, VOCAB_SIZE, 8))]),
    }
)


class Interleavings(RuleBasedStateMachine):
    """Drives a scheduler over paged memory and checks it after every action."""

    @initialize(chosen=_limits, depth=st.sampled_from([1, 2, 3]))
    def start(self, chosen: SchedulerLimits, depth: int) -> None:
        self.scheduler = Scheduler(chosen)
        self.scheduler.step_time = STEP_TIME
        self.driver = Driver(self.scheduler, depth=depth)
        self.requests: dict[str, GenerationRequest] = {}
        self.aborted: set[str] = set()
        self.checked_plans = 0

    @rule(
        call=_calls,
        choices=st.sampled_from([1, 1, 1, 3]),
        patience_seconds=st.sampled_from([None, None, 3, 20]),
        prompt_logprobs=st.sampled_from([None, None, None, 2]),
    )
    def add(
        self, call: dict[str, Any], choices: int, patience_seconds: int | None, prompt_logprobs: int | None
    ) -> None:
        group, salt, prompt = len(self.requests), call["cache_salt"], call["prompt"]
        for choice in range(choices):
            name = f"r{group}.{choice}"
            self.requests[name] = request(
                name,
                deadline_seconds=None if patience_seconds is None else self.driver.now_seconds + patience_seconds,
                prompt_logprobs=prompt_logprobs if choice == 0 else None,
                group_id=f"g{group}" if choices > 1 else "",
                prefix_hashes=(f"{salt}/{prompt[: len(prompt) // 2]}", f"{salt}/{prompt}"),
                **call,
            )
            self.scheduler.add(self.requests[name])

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.requests)))
        if self.scheduler.abort(name):
            self.aborted.add(name)

    @rule(turns=st.integers(1, 6))
    def turn(self, turns: int) -> None:
        for _ in range(turns):
            self.driver.now_seconds += 0.5
            self.driver.turn()
            self._check_new_plans()

    @invariant()
    def every_block_is_held_by_who_counts_it(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        self.scheduler.check_integrity()
        running = list(self.scheduler._running)
        held = Counter(block for sequence in running for block in sequence.block_table)
        holders = self.scheduler._kv.blocks._holders
        assert {block: count for block, count in enumerate(holders) if count} == dict(held)
        index = self.scheduler._kv.blocks._digest_of
        for sequence in running:
            # Whoever holds a registered block holds all before it: so the index never has a hole.
            assert all(block in index for block in sequence.block_table[: sequence.registered_blocks])
        by_salt = {
            salt: {block for s in running if s.request.cache_salt == salt for block in s.block_table} for salt in SALTS
        }
        assert sum(len(blocks) for blocks in by_salt.values()) == len(held), "two salts share a block"

    def _check_new_plans(self) -> None:
        for planned in self.driver.plans[self.checked_plans :]:
            rows = planned.plan.sequences
            assert 1 <= sum(row.computed_tokens for row in rows) <= self.scheduler.limits.max_num_batched_tokens
            assert len(rows) <= self.scheduler.limits.max_num_seqs
            decodes = sum(row.computed_tokens for row in rows) - planned.prefill_tokens
            if self.scheduler.limits.itl_target_seconds is not None and decodes:
                seconds = predict_seconds(
                    STEP_TIME,
                    sequences=len(rows),
                    prefill_tokens=planned.prefill_tokens,
                    kv_tokens=planned.kv_tokens,
                )
                is_within = seconds <= ITL_TARGET_SECONDS + 1e-9
                assert is_within or planned.prefill_tokens <= MINIMUM_PREFILL_TOKENS
            for sequence in planned.sequences:
                deadline = sequence.request.deadline_seconds
                assert deadline is None or deadline > self.driver.now_seconds, "computed past its deadline"
                assert sequence.request.request_id not in self.aborted, "computed after its abort"
        self.checked_plans = len(self.driver.plans)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        work = sum(len(r.prompt_token_ids) + r.max_tokens for r in self.requests.values())
        # No starvation: even alone in the cache and one token a step each is done in its own number of steps.
        self.driver.run(turns=4 * work + 10)
        assert set(self.driver.finished) | self.aborted == set(self.requests)
        for name, wanted in self.requests.items():
            self._check_text(name, wanted)
        stats = self.scheduler.stats()
        assert (stats.running, stats.waiting, stats.queued_tokens, stats.kv_blocks_used) == (0, 0, 0, 0)
        assert stats.kv_blocks_cached == len(self.scheduler._kv.blocks._digest_of)
        self._check_index()

    def _check_text(self, name: str, wanted: GenerationRequest) -> None:
        prompt = wanted.prompt_token_ids
        expected = expected_tokens(MODEL, prompt, max_tokens=wanted.max_tokens, stop_token_ids=wanted.stop_token_ids)
        tokens = self.driver.tokens.get(name, [])
        is_whole = self.driver.finished.get(name) in (FinishReason.STOP, FinishReason.LENGTH)
        assert tokens == (expected if is_whole else expected[: len(tokens)])
        scored = self.driver.prompt_logprobs.get(name, [])
        logprobs = [
            token_logprobs(MODEL, prompt[:k], prompt[k], alternatives=2, vocab_size=VOCAB_SIZE)
            for k in range(1, len(prompt))
        ]
        is_scored = wanted.prompt_logprobs is not None and is_whole
        assert scored == (logprobs if is_scored else logprobs[: len(scored)])

    def _check_index(self) -> None:
        """A digest stands for exactly the tokens in its block, and its whole chain is in the index."""
        index = self.scheduler._kv.blocks._block_of
        chain_starts = {root_digest(salt): salt for salt in SALTS}
        for digest, block in index.items():
            token_ids = [token for token in self.driver.memory.tokens_of(block) if token is not None]
            parents = [parent for parent in (*index, *chain_starts) if block_digest(parent, token_ids) == digest]
            assert len(parents) == 1, f"block {block} cannot be reached, or holds other tokens"
        attached = self.scheduler._kv._resident._hashes_of
        assert attached.keys() <= set(index.values()), "a hash outlived its block"
        assert self.driver.resident == {text_hash for hashes in attached.values() for text_hash in hashes}


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True, database=None
)
