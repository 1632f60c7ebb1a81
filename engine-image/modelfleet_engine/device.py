"""The device as the engine loop sees it: `load_model` makes one, `ThreadDevice` runs steps on a thread of its own.

Must not know requests, text or HTTP: plans in, token ids out (`step_plan` is the contract).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from modelfleet_api.engine_config import EngineConfig
from modelfleet_engine.errors import ModelError as ModelError
from modelfleet_engine.step_plan import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model ready to run steps, with every size resolved. `phases` are seconds per phase of the start, in order."""

    device: Device
    kv_blocks: int
    block_tokens: int
    kv_block_bytes: int
    max_model_len: int
    vocab_size: int
    dtype: str
    backend: str
    phases: Mapping[str, float]


def load_model(config: EngineConfig) -> LoadedModel:
    """Reads, packs and warms up the model in `config.model_path`.

    Raises:
        ModelError: the model or the configuration cannot be served.
    """
    raise NotImplementedError(config.model_path)
