"""One step on the device: plan -> tensors -> forward -> sample. Owns the device's state table; knows no requests."""

from __future__ import annotations

import time

import torch
from modelfleet_kernels import Kernels
from torch import Tensor

from modelfleet_engine.batch import StepBatch, build_batch
from modelfleet_engine.kv_cache import copy_blocks
from modelfleet_engine.logprobs import token_logprobs
from modelfleet_engine.model_config import ModelConfig
from modelfleet_engine.models.decoder import DecoderModel
from modelfleet_engine.sampler import Sampler
from modelfleet_engine.step_plan import StepPlan, StepResult, TokenLogprobs
from modelfleet_engine.vocabulary import row_slices


class ModelRunner:
    """Runs plans in order. `last_sampled` and what the sampler counts are indexed by slot."""

    def __init__(
        self,
        model: DecoderModel,
        *,
        config: ModelConfig,
        kernels: Kernels,
        kv_cache: Tensor,
        max_num_seqs: int,
    ) -> None:
        """`kv_cache` is [layers, N, 2, Hkv, P, D], see `kv_cache.allocate_cache`."""
        self._model = model
        self._kernels = kernels
        self._kv_cache = kv_cache
        self._kv_layers = kv_cache.unbind(0)
        self._query_heads = config.query_heads
        self._vocab_size = config.vocab_size
        self._block_tokens = kv_cache.shape[4]
        self._sampler = Sampler()
        self._last_sampled = torch.zeros(max_num_seqs, dtype=torch.int64)  # [max_num_seqs]

    def run(self, plan: StepPlan) -> StepResult:
        """Computes one step; the tokens of its sampling rows are also kept for the next step's placeholders."""
        started = time.perf_counter()
        with torch.inference_mode():
            copy_blocks(self._kv_cache, plan.block_copies)
            batch, hidden = self._forward(plan)  # [R + Q, H]
            self._sampler.observe(plan, last_sampled=self._last_sampled)
            sampled_count = len(batch.sampling_rows)
            sampled, logprobs = self._sample(plan, batch, hidden[:sampled_count])
            prompt_logprobs = self._score(plan, batch, hidden[sampled_count:])
        return StepResult(
            step_id=plan.step_id,
            sampled_token_ids=tuple(sampled),
            busy_seconds=time.perf_counter() - started,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )

    def logits(self, plan: StepPlan) -> Tensor:
        """The logits [R, V] float32 of the plan's sampling rows; computes and writes KV, samples nothing."""
        with torch.inference_mode():
            batch, hidden = self._forward(plan)
            return self._model.logits(hidden[: len(batch.sampling_rows)])

    def _forward(self, plan: StepPlan) -> tuple[StepBatch, Tensor]:
        """The plan's tensors, and the final hidden states [R + Q, H] of its output tokens."""
        batch = build_batch(plan, block_tokens=self._block_tokens, last_sampled=self._last_sampled)
        prepared = self._kernels.prepare(
            batch.paged, self._kv_layers[0], query_heads=self._query_heads, windows=self._model.windows
        )
        hidden = self._model.forward(
            batch.token_ids, batch.positions, self._kv_layers, prepared, output_tokens=batch.output_tokens
        )
        return batch, hidden

    def _sample(
        self, plan: StepPlan, batch: StepBatch, hidden: Tensor
    ) -> tuple[list[int | None], dict[int, TokenLogprobs]]:
        """hidden [R, H] -> one token per row of the plan (None where it does not sample), and log probabilities."""
        result: list[int | None] = [None] * len(plan.sequences)
        logprobs: dict[int, TokenLogprobs] = {}
        for part in row_slices(hidden.shape[0], vocab_size=self._vocab_size):
            members = batch.sampling_rows[part]
            logits = self._model.logits(hidden[part])  # [R', V]
            samples = self._sampler.sample(logits, [plan.sequences[row] for row in members])
            self._last_sampled[batch.slots[part]] = samples.token_ids
            for row, token in zip(members, samples.token_ids.tolist(), strict=True):
                result[row] = token
            for index, entry in samples.logprobs.items():
                logprobs[members[index]] = entry
        return result, logprobs

    def _score(self, plan: StepPlan, batch: StepBatch, hidden: Tensor) -> dict[int, tuple[TokenLogprobs, ...]]:
        """hidden [Q, H] -> the log probabilities of each scored row's prompt tokens."""
        rows = [plan.sequences[index] for index in batch.scored_rows]
        alternatives = [row.prompt_logprobs or 0 for row in rows for _ in row.target_token_ids]  # Q
        entries: list[TokenLogprobs] = []
        for part in row_slices(hidden.shape[0], vocab_size=self._vocab_size):
            logits = self._model.logits(hidden[part])  # [Q', V]
            entries += token_logprobs(logits, batch.target_token_ids[part], alternatives[part])
        result: dict[int, tuple[TokenLogprobs, ...]] = {}
        first = 0
        for index, row in zip(batch.scored_rows, rows, strict=True):
            result[index] = tuple(entries[first : first + len(row.target_token_ids)])
            first += len(row.target_token_ids)
        return result
