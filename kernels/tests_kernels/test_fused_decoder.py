"""Fused decoders of every CPU backend that has them, against the same layers op by op in float32."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from modelfleet_kernels import AttentionForm, Kernels, available_backends, select
from modelfleet_kernels.checks import ContractError
from modelfleet_kernels.testing import relative_rms
from torch import Tensor

from tests_kernels.batches import Geometry, fill_sequences, make_batch, make_rope
from tests_kernels.stacks import HIDDEN, Shape, make_stack, run_op_by_op

FUSED = [name for name in available_backends("cpu") if name == "cpu"]
ROWS = [(1, 4), (5, 5), (1, 37), (19, 40)]
TOKENS = 26
# Some twenty roundings of a step, of which each costs at most 2^-9.
TOLERANCE = 1.5e-2

SHAPES = {
    "plain": Shape(),
    "biases and head norms": Shape(has_biases=True, has_head_norms=True),
    "norms of both outputs": Shape(has_output_norm=True, has_mlp_output_norm=True),
    "a norm of the MLP's output alone": Shape(has_mlp_output_norm=True),
    "a norm of attention's output alone": Shape(has_output_norm=True),
    "one layer, ungrouped heads, soft cap": Shape(
        query_heads=3, kv_heads=3, head_dim=48, forms=(AttentionForm(soft_cap=2.0, scale=0.3),)
    ),
}


@pytest.fixture(params=FUSED)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """Each backend with fused decoders."""
    return select("cpu", request.param)


@dataclasses.dataclass
class Call:
    """Arguments of one call."""

    kernels: Kernels
    shape: Shape
    output_tokens: Tensor

    def __post_init__(self) -> None:
        shape = self.shape
        self.geometry = Geometry(
            query_heads=shape.query_heads, kv_heads=shape.kv_heads, head_dim=shape.head_dim, block_tokens=16, blocks=9
        )
        self.batch = make_batch(self.geometry, ROWS)
        self.plain = [self.geometry.cache(torch.bfloat16, seed=layer) for layer in range(len(shape.forms))]
        for layer, cache in enumerate(self.plain):
            fill_sequences(cache, self.batch, seed=10 + layer)
        self.caches = [self.kernels.cache_from_plain(cache) for cache in self.plain]
        self.windows = {form.window for form in shape.forms}
        self.prepared = self.prepare(self.kernels, self.caches[0])
        self.ropes = [make_rope(TOKENS, shape.head_dim, dtype=torch.bfloat16)]
        self.embedded = torch.randn((TOKENS, HIDDEN), generator=torch.Generator().manual_seed(4)).bfloat16()

    def prepare(self, kernels: Kernels, cache: Tensor) -> Any:
        """The batch for `kernels`."""
        return kernels.prepare(self.batch, cache, query_heads=self.shape.query_heads, windows=self.windows)

    def answer(self) -> Tensor:
        """[R, H]."""
        decoder = self.kernels.fuse(make_stack(self.kernels, self.shape, dtype=torch.bfloat16))
        assert decoder is not None
        return decoder(self.embedded, self.caches, self.prepared, self.ropes, self.output_tokens)

    def definition(self) -> tuple[Tensor, list[Tensor]]:
        """[R, H] and what the caches then hold, in float32."""
        reference, caches = select("cpu", "reference"), [cache.float() for cache in self.plain]
        stack = make_stack(reference, self.shape, dtype=torch.float32)
        rope = make_rope(TOKENS, self.shape.head_dim, dtype=torch.bfloat16)
        wide = dataclasses.replace(rope, cos=rope.cos.float(), signed_sin=rope.signed_sin.float())
        prepared = self.prepare(reference, caches[0])
        hidden = run_op_by_op(reference, stack, self.embedded.float(), caches, prepared, wide)
        return hidden[self.output_tokens], caches


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("outputs", [range(TOKENS), [0, 5, 6, 25], [25, 0, 0]], ids=["all", "last", "repeated"])
def test_a_fused_decoder_equals_its_layers_op_by_op(kernels: Kernels, shape: Shape, outputs: list[int]) -> None:
    call = Call(kernels, shape, torch.tensor(outputs))
    hidden = call.answer()
    expected, caches = call.definition()
    assert relative_rms(hidden, expected) < TOLERANCE
    for cache, wide in zip(call.caches, caches, strict=True):
        assert relative_rms(kernels.cache_to_plain(cache), wide) < TOLERANCE


def test_a_step_that_no_token_s_output_is_wanted_of_writes_its_keys_and_values(kernels: Kernels) -> None:
    call = Call(kernels, Shape(has_output_norm=True), torch.zeros(0, dtype=torch.int64))
    hidden = call.answer()
    _, caches = call.definition()
    assert hidden.shape == (0, HIDDEN)
    for cache, wide in zip(call.caches, caches, strict=True):
        assert relative_rms(kernels.cache_to_plain(cache), wide) < TOLERANCE


def _set(name: str, change: Callable[[Any], Any]) -> Callable[[Call], None]:
    return lambda call: setattr(call, name, change(getattr(call, name)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("embedded", lambda rows: rows[:-1]), r"embedded tokens must be \[26, 70\]"),
        (_set("embedded", lambda rows: rows.float()), r"embedded tokens must be .*bfloat16, got .*float32"),
        (_set("caches", lambda caches: caches[:1]), "takes 2 layers' caches and 1 rope tables, got 1 and 1"),
        (_set("caches", lambda caches: [*caches[:1], caches[1][:, :, :1]]), r"the cache must be \[N"),
        (_set("caches", lambda caches: [*caches[:1], caches[1].repeat(2, 1, 1, 1, 1)[::2]]), "contiguous"),
        (_set("caches", lambda caches: [*caches[:1], caches[1].float()]), "prepared for 9 blocks of bfloat16"),
        (_set("caches", lambda caches: [*caches[:1], caches[1][:8]]), "prepared for 9 blocks of bfloat16, got 8"),
        (_set("ropes", lambda _: []), "got 2 and 0"),
        (_set("ropes", lambda _: [make_rope(25, 16, dtype=torch.bfloat16)]), "rope tables must be"),
        (_set("output_tokens", lambda tokens: tokens.int()), r"output tokens must be \[R\] int64"),
        (_set("shape", lambda shape: dataclasses.replace(shape, forms=(AttentionForm(window=9),) * 2)), "windows"),
        (_set("shape", lambda shape: dataclasses.replace(shape, query_heads=2)), "not prepared for"),
    ],
)
def test_a_call_outside_the_contract_is_refused(kernels: Kernels, change: Callable[[Call], None], message: str) -> None:
    call = Call(kernels, Shape(), torch.tensor([0]))
    change(call)
    with pytest.raises(ContractError, match=message):
        call.answer()


@pytest.mark.parametrize("token", [-1, TOKENS])
def test_an_output_token_that_the_step_does_not_compute_is_refused(kernels: Kernels, token: int) -> None:
    with pytest.raises(IndexError, match=f"output tokens are 0 to 25, got {token}"):
        Call(kernels, Shape(), torch.tensor([3, token])).answer()


def test_a_decoder_whose_weights_do_not_fit_each_other_is_refused(kernels: Kernels) -> None:
    stack = make_stack(kernels, Shape(), dtype=torch.bfloat16)
    first, second = stack.layers
    for layer, message in (
        (dataclasses.replace(second, output=first.down), "layer 1: output must be 96 -> 70, got 48 -> 70"),
        (dataclasses.replace(second, mlp_norm=torch.ones(3)), r"layer 1: a norm must be \[70\], got \[3\]"),
        (
            dataclasses.replace(second, attention=AttentionForm(scale=3.0)),
            "scale and soft cap are those of every layer",
        ),
    ):
        with pytest.raises(ContractError, match=message):
            kernels.fuse(dataclasses.replace(stack, layers=[first, layer]))
