"""A real server process over the fake device: `python -m tests_engine.fake_server DIR [serve's flags]`.

The environment says how the device behaves: FAKE_STEP_SECONDS, FAKE_FAIL_AT_STEP, FAKE_LOAD_SECONDS, FAKE_FAILURE,
FAKE_HANG_AT_STEP, FAKE_STUCK_SECONDS, FAKE_HUNG_SECONDS, FAKE_MODEL_ERROR, FAKE_KV_BLOCKS.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from modelfleet_api.engine_config import EngineConfig
from modelfleet_engine import server, serving, settings
from modelfleet_engine.errors import ModelError
from modelfleet_engine.step_plan import Device, ProfiledStep

from tests_engine.fake_device import FakeDevice
from tests_engine.tiny_model import VOCAB_SIZE, encode

BROKEN = "the fake device broke"


@dataclass(frozen=True)
class Alphabet:
    """Answers with the alphabet: the letter after the last one of the context, forever."""

    letters: tuple[int, ...] = field(default_factory=lambda: encode("abcdefghijklmnopqrstuvwxyz"))

    def __call__(self, context: Sequence[int]) -> int:
        last = context[-1]
        if last not in self.letters:
            return self.letters[0]
        return self.letters[(self.letters.index(last) + 1) % len(self.letters)]


@dataclass(frozen=True)
class FakeModel:
    """What the fake loader returns in place of `device.LoadedModel`."""

    device: Device
    kv_blocks: int
    block_tokens: int
    max_model_len: int
    vocab_size: int = VOCAB_SIZE
    dtype: str = "float32"
    backend: str = "fake"
    phases: Mapping[str, float] = field(default_factory=lambda: {"weights": 0.001, "profile": 0.002})
    profiled_steps: tuple[ProfiledStep, ...] = ()
    full_step_seconds: float = 0.0


def load_fake_model(config: EngineConfig) -> FakeModel:
    """The loader the server is given instead of the real one."""
    time.sleep(float(os.environ.get("FAKE_LOAD_SECONDS", "0")))
    message = os.environ.get("FAKE_MODEL_ERROR")
    if message is not None:
        raise ModelError(message)
    kv_blocks = int(os.environ.get("FAKE_KV_BLOCKS", "1024"))
    block_tokens = 16
    hang_at = os.environ.get("FAKE_HANG_AT_STEP")
    fail_at = os.environ.get("FAKE_FAIL_AT_STEP")
    device = FakeDevice(
        model=Alphabet(),
        vocab_size=VOCAB_SIZE,
        kv_blocks=kv_blocks,
        block_tokens=block_tokens,
        step_seconds=float(os.environ.get("FAKE_STEP_SECONDS", "0.002")),
        hang_at_step=None if hang_at is None else int(hang_at),
        fail_at_step=None if fail_at is None else int(fail_at),
        failure=MemoryError() if os.environ.get("FAKE_FAILURE") == "OutOfMemory" else RuntimeError(BROKEN),
    )
    capacity = kv_blocks * block_tokens
    return FakeModel(
        device=device,
        kv_blocks=kv_blocks,
        block_tokens=block_tokens,
        max_model_len=min(capacity, config.max_model_len or 4096),
    )


def main(argv: Sequence[str]) -> NoReturn:
    """Like `modelfleet-engine serve`, with the fake loader."""
    parser = argparse.ArgumentParser()
    settings.add_serve_arguments(parser)
    options = settings.parse_serve_options(parser.parse_args(argv))
    serving.STUCK_STEP_SECONDS = float(os.environ.get("FAKE_STUCK_SECONDS", serving.STUCK_STEP_SECONDS))
    server.HUNG_STEP_SECONDS = float(os.environ.get("FAKE_HUNG_SECONDS", server.HUNG_STEP_SECONDS))
    server.serve(options, started_seconds=time.monotonic(), loader=load_fake_model)


if __name__ == "__main__":
    main(sys.argv[1:])
