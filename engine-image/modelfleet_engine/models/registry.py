"""From a configuration and a checkpoint to the model that computes it: one class for all of `model_families`."""

from __future__ import annotations

from modelfleet_kernels import Kernels

from modelfleet_engine.errors import ModelError
from modelfleet_engine.model_config import ModelConfig
from modelfleet_engine.models.decoder import DecoderModel
from modelfleet_engine.weights import Weights

# What checkpoints carry and nobody needs: a tied head beside the embedding, frequencies old exporters saved.
_IGNORED_SUFFIXES = ("lm_head.weight", "rotary_emb.inv_freq")


def build_model(config: ModelConfig, weights: Weights, kernels: Kernels, *, max_model_len: int) -> DecoderModel:
    """Reads and packs the weights; `max_model_len` bounds every sequence to come, in tokens.

    Raises:
        ModelError: a tensor is missing, misshapen, or there are tensors this architecture would leave out.
    """
    model = DecoderModel(config, weights, kernels, max_model_len=max_model_len)
    left = [name for name in weights.left() if not name.endswith(_IGNORED_SUFFIXES)]
    if left:
        shown = ", ".join(left[:3])
        raise ModelError(f"{config.architecture} does not use {len(left)} tensors of the checkpoint: {shown}")
    return model
