"""Real models for tests: the demo model, tiny random-weight ones, and a driver that plays the scheduler's part.

Import the fixtures by name into the test module that uses them.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from modelfleet_engine.step_plan import Device, SamplingParameters, ScheduledSequence, StepPlan, StepResult

from e2e.demo_model import demo_model_path

GREEDY = SamplingParameters(temperature=0.0)

TINY_SIZES: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


@pytest.fixture(scope="session")
def demo_model_dir() -> Path:
    """SmolLM2-135M-Instruct, prepared on first use (half a minute)."""
    return demo_model_path()


def write_random_model(directory: Path, *, family: str, **overrides: Any) -> Any:
    """Saves a tiny random float32 model of a transformers family ("Llama", "Gemma3"); answers the model."""
    import transformers

    torch.manual_seed(11)
    config_class = getattr(transformers, f"{family}TextConfig", None) or getattr(transformers, f"{family}Config")
    config = config_class(**TINY_SIZES | overrides)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Biases start at zero and norms at one: a forgotten one would not show.
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.mul_(6)
    model.save_pretrained(directory)
    return model


@dataclass(kw_only=True)
class DrivenSequence:
    """One prompt on its way through the device."""

    prompt: tuple[int, ...]
    sampling: SamplingParameters = GREEDY
    output_tokens: int = 16
    slot: int = -1
    blocks: tuple[int, ...] = ()
    computed: int = 0
    planned_outputs: int = 0
    outputs: list[int] = field(default_factory=list)

    def next_row(self, budget: int, *, previous_known: bool) -> ScheduledSequence:
        """The row of the next step: a prefill chunk of at most `budget` tokens, or one decode token."""
        left = len(self.prompt) - self.computed
        start = self.computed
        is_decode = left <= 0
        if is_decode:
            known = (self.outputs[-1],) if previous_known else ()
            tokens: tuple[int, ...] = known
            self.computed += 1
        else:
            tokens = self.prompt[start : start + budget]
            self.computed += len(tokens)
        samples = self.computed >= len(self.prompt)
        self.planned_outputs += samples
        return ScheduledSequence(
            slot=self.slot,
            token_ids=tokens,
            input_from_previous_step=is_decode and not previous_known,
            start_position=start,
            block_table=self.blocks,
            sampling=self.sampling if samples else None,
            is_first_chunk=start == 0,
            prompt_token_ids=self.prompt if start == 0 else (),
        )


def drive(
    device: Device, sequences: Sequence[DrivenSequence], *, block_tokens: int, kv_blocks: int, budget: int = 64
) -> list[StepPlan]:
    """Runs all sequences to their output lengths: decodes first, chunked prefill, one step ahead of the results.

    Blocks are scattered. Answers the plans, in order.
    """
    free = list(range(kv_blocks))
    random.Random(5).shuffle(free)
    for slot, sequence in enumerate(sequences):
        needed = -(-(len(sequence.prompt) + sequence.output_tokens) // block_tokens)
        sequence.slot, sequence.blocks = slot, tuple(free.pop() for _ in range(needed))
    in_flight: deque[tuple[StepPlan, list[DrivenSequence]]] = deque()
    plans: list[StepPlan] = []
    while True:
        members, rows = _plan_rows(sequences, budget)
        if rows:
            plan = StepPlan(step_id=len(plans), sequences=tuple(rows))
            plans.append(plan)
            device.submit(plan)
            in_flight.append((plan, members))
        if len(in_flight) > 1 or (in_flight and not rows):
            planned, planned_members = in_flight.popleft()
            _take_outputs(device.wait(), planned, planned_members)
        if not in_flight and not rows:
            return plans


def _plan_rows(
    sequences: Sequence[DrivenSequence], budget: int
) -> tuple[list[DrivenSequence], list[ScheduledSequence]]:
    unfinished = [sequence for sequence in sequences if sequence.planned_outputs < sequence.output_tokens]
    decodes = [sequence for sequence in unfinished if sequence.planned_outputs > 0]
    prefills = [sequence for sequence in unfinished if sequence.planned_outputs == 0]
    members: list[DrivenSequence] = []
    rows: list[ScheduledSequence] = []
    for sequence in (*decodes, *prefills):
        if budget > 0:
            rows.append(sequence.next_row(budget, previous_known=False))
            members.append(sequence)
            budget -= rows[-1].computed_tokens
    return members, rows


def _take_outputs(result: StepResult, plan: StepPlan, members: list[DrivenSequence]) -> None:
    assert result.step_id == plan.step_id
    for row, member, token in zip(plan.sequences, members, result.sampled_token_ids, strict=True):
        assert (token is None) == (row.sampling is None)
        if token is not None:
            member.outputs.append(token)
