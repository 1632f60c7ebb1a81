"""One step on the device: plan -> tensors -> forward -> sample. Owns the device's state table; knows no requests."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from modelfleet_kernels import Kernels
from torch import Tensor

from modelfleet_engine.batch import build_batch
from modelfleet_engine.model_config import ModelConfig
from modelfleet_engine.models.decoder import DecoderModel
from modelfleet_engine.sampler import Sampler
from modelfleet_engine.step_plan import StepPlan, StepResult


class ModelRunner:
    """Runs plans in order. `last_sampled` and the sampler's count tables are indexed by slot."""

    def __init__(
        self,
        model: DecoderModel,
        *,
        config: ModelConfig,
        kernels: Kernels,
        kv_layers: Sequence[Tensor],
        max_num_seqs: int,
    ) -> None:
        self._model = model
        self._kernels = kernels
        self._kv_layers = kv_layers
        self._query_heads = config.query_heads
        self._block_tokens = kv_layers[0].shape[3]
        self._sampler = Sampler(max_num_seqs=max_num_seqs, vocab_size=config.vocab_size)
        self._last_sampled = torch.zeros(max_num_seqs, dtype=torch.int64)  # [max_num_seqs]

    def run(self, plan: StepPlan) -> StepResult:
        """Computes one step; the tokens of its sampling rows are also kept for the next step's placeholders."""
        started = time.perf_counter()
        with torch.inference_mode():
            sampled = self._step(plan)
        return StepResult(
            step_id=plan.step_id,
            sampled_token_ids=tuple(sampled),
            busy_seconds=time.perf_counter() - started,
        )

    def logits(self, plan: StepPlan) -> Tensor:
        """The logits [R, V] float32 of the plan's sampling rows; computes and writes KV, samples nothing."""
        with torch.inference_mode():
            return self._forward(plan)[0]

    def _forward(self, plan: StepPlan) -> tuple[Tensor, Tensor, list[int]]:
        """Logits [R, V], slots [R] and plan rows of what samples."""
        batch = build_batch(plan, block_tokens=self._block_tokens, last_sampled=self._last_sampled)
        prepared = self._kernels.prepare(
            batch.paged, self._kv_layers[0], query_heads=self._query_heads, windows=self._model.windows
        )
        hidden = self._model.forward(
            batch.token_ids, batch.positions, self._kv_layers, prepared, output_tokens=batch.output_tokens
        )
        return self._model.logits(hidden), batch.slots, batch.sampling_rows

    def _step(self, plan: StepPlan) -> list[int | None]:
        logits, slots, sampling_rows = self._forward(plan)
        self._sampler.observe(plan, last_sampled=self._last_sampled)
        result: list[int | None] = [None] * len(plan.sequences)
        if not sampling_rows:
            return result
        sampled = self._sampler.sample(logits, [plan.sequences[row] for row in sampling_rows])  # [R]
        self._last_sampled[slots] = sampled
        for row, token in zip(sampling_rows, sampled.tolist(), strict=True):
            result[row] = token
        return result
