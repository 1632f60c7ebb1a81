"""Which class computes which architecture. `model_config` has already refused what is not listed here."""

from __future__ import annotations

from modelfleet_kernels import Kernels

from modelfleet_engine.errors import ModelError
from modelfleet_engine.model_config import ModelConfig
from modelfleet_engine.models.decoder import DecoderModel
from modelfleet_engine.weights import Weights

_MODELS = {
    "LlamaForCausalLM": DecoderModel,
    "MistralForCausalLM": DecoderModel,
    "Qwen2ForCausalLM": DecoderModel,
}

# What checkpoints carry and nobody needs: a tied head beside the embedding, frequencies old exporters saved.
_IGNORED_SUFFIXES = ("lm_head.weight", "rotary_emb.inv_freq")


def build_model(config: ModelConfig, weights: Weights, kernels: Kernels) -> DecoderModel:
    """Reads and packs the weights.

    Raises:
        ModelError: a tensor is missing, misshapen, or there are tensors this architecture would leave out.
    """
    model = _MODELS[config.architecture](config, weights, kernels)
    left = [name for name in weights.left() if not name.endswith(_IGNORED_SUFFIXES)]
    if left:
        shown = ", ".join(left[:3])
        raise ModelError(f"{config.architecture} does not use {len(left)} tensors of the checkpoint: {shown}")
    return model
