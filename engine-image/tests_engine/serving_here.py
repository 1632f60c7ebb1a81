"""Serving in the test's own process: the real application, tokenizer and bridge over the fake device."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from modelfleet_api.engine_config import EngineConfig
from modelfleet_engine.admission import QueueLimits
from modelfleet_engine.bridge import Bridge
from modelfleet_engine.drain import Drain
from modelfleet_engine.load import RequestCounts
from modelfleet_engine.scheduler import Scheduler, SchedulerLimits
from modelfleet_engine.serving import ReadyModel, Serving
from modelfleet_engine.step_plan import ProfiledStep
from modelfleet_engine.tokenizer import ModelTokenizer

from tests_engine.fake_device import FakeDevice
from tests_engine.fake_server import Alphabet
from tests_engine.tiny_model import VOCAB_SIZE

MAX_OUTSTANDING = 4
MAX_MODEL_LEN = 256
_BLOCK_TOKENS = 16


@asynccontextmanager
async def serving_here(
    directory: Path, *, vocab_size: int = VOCAB_SIZE, profiled: Sequence[ProfiledStep] = ()
) -> AsyncIterator[tuple[Serving, ReadyModel]]:
    """A ready model with room for four sequences, its tokenizer on one thread."""
    kv_blocks = MAX_MODEL_LEN // _BLOCK_TOKENS * MAX_OUTSTANDING
    limits = SchedulerLimits(
        max_num_seqs=2,
        max_num_batched_tokens=64,
        max_model_len=MAX_MODEL_LEN,
        kv_blocks=kv_blocks,
        block_tokens=_BLOCK_TOKENS,
    )
    counts = RequestCounts()
    bridge = Bridge(
        device=FakeDevice(
            model=Alphabet(), vocab_size=vocab_size, kv_blocks=kv_blocks, block_tokens=_BLOCK_TOKENS, step_seconds=0.02
        ),
        scheduler=Scheduler(limits),
        counts=counts,
        queue=QueueLimits(sequences=MAX_OUTSTANDING - limits.max_num_seqs),
        on_failure=lambda error: pytest.fail(str(error)),
        profiled=profiled,
    )
    model = ReadyModel(
        bridge=bridge,
        tokenizer=ModelTokenizer(directory),
        max_model_len=MAX_MODEL_LEN,
        vocab_size=vocab_size,
        block_tokens=_BLOCK_TOKENS,
        dtype="float32",
        backend="fake",
    )
    with ThreadPoolExecutor(max_workers=1) as pool:
        serving = Serving(
            config=EngineConfig(model_path=str(directory), served_model_name="tiny"),
            drain=Drain(accept_seconds=0, drain_seconds=0),
            tokenizer_pool=pool,
            counts=counts,
            model=model,
        )
        yield serving, model
        bridge.close()
        while bridge.is_alive():
            await asyncio.sleep(0.001)
