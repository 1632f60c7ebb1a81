"""Shared KV on the real model: cached, forked and copied blocks give the tokens that computing them gives."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from modelfleet_engine.device import LoadedModel
from modelfleet_engine.engine import Close, Engine, Failed, Submit, Update
from modelfleet_engine.request import GenerationRequest
from modelfleet_engine.scheduler import Scheduler, SchedulerLimits, SchedulerStats
from modelfleet_engine.step_plan import SamplingParameters

from tests_engine.model_fixtures import demo_model_dir
from tests_engine.test_model_smollm2 import load_engine

__all__ = ["demo_model_dir"]

pytestmark = pytest.mark.model

OUTPUT_TOKENS = 12
CHOICES = 3
# Ends inside a block, so that a fork copies one.
PROMPT = tuple(range(1000, 1100))


class _Calls:
    """Runs one call after the other on one engine."""

    def __init__(self, model: LoadedModel) -> None:
        limits = SchedulerLimits(
            max_num_seqs=8,
            max_num_batched_tokens=64,
            max_model_len=model.max_model_len,
            kv_blocks=model.kv_blocks,
            block_tokens=model.block_tokens,
        )
        self._updates: list[Update] = []
        self._failures: list[Failed] = []
        self._changed = threading.Condition()
        self._engine = Engine(device=model.device, scheduler=Scheduler(limits), publish=self._publish)
        self._thread = threading.Thread(target=self._engine.run)
        self._thread.start()

    def run(self, name: str) -> list[list[int]]:
        """The tokens of each choice of a call, and of the same call again if it is asked again."""
        requests = tuple(
            GenerationRequest(
                request_id=f"{name}.{choice}",
                prompt_token_ids=PROMPT,
                sampling=SamplingParameters(temperature=0.0),
                max_tokens=OUTPUT_TOKENS,
                group_id=name,
            )
            for choice in range(CHOICES)
        )
        self._engine.send(Submit(requests=requests))
        ids = {request.request_id for request in requests}
        with self._changed:
            assert self._changed.wait_for(lambda: self._failures or ids <= self._finished(), timeout=120)
        assert self._failures == []
        return [self._tokens(request.request_id) for request in requests]

    def close(self) -> SchedulerStats:
        self._engine.send(Close())
        self._thread.join()
        return self._updates[-1].stats.scheduler

    def _publish(self, message: Update | Failed) -> None:
        with self._changed:
            if isinstance(message, Failed):
                self._failures.append(message)
            else:
                self._updates.append(message)
            self._changed.notify_all()

    def _finished(self) -> set[str]:
        return {request_id for update in self._updates for request_id in update.outputs.finish_reasons}

    def _tokens(self, request_id: str) -> list[int]:
        return [
            token
            for update in self._updates
            for name, token in zip(update.outputs.request_ids, update.outputs.token_ids, strict=True)
            if name == request_id
        ]


def test_forked_and_cached_prompts_generate_what_the_first_one_did(demo_model_dir: Path) -> None:
    calls = _Calls(load_engine(demo_model_dir, "float32"))
    try:
        leader, *forks = calls.run("first")
        again = calls.run("again")
    finally:
        stats = calls.close()

    assert len(leader) == OUTPUT_TOKENS
    assert forks == [leader] * (CHOICES - 1)
    assert again == [leader] * CHOICES
    # Each call computes its prompt once; the second finds its six full blocks of sixteen.
    assert stats.prefix_hit_tokens == 96
