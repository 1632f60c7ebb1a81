"""How much memory one step may take beside weights and KV cache: upper bounds from the model's sizes. No torch ops.

The profile run measures what it reaches. These bounds stand in for the rest: steps larger than the profiled one, long
contexts, and machines that do not say what was used.
"""

from __future__ import annotations

from modelfleet_engine.model_config import ModelConfig
from modelfleet_engine.vocabulary import workspace_bytes

# The attention backends' workspace bound, gathered once more as a temporary.
ATTENTION_MARGIN_BYTES = 128 << 20
# Scores that the attention backend holds as a matrix: of so many tokens, and up to so many unless they are capped.
TILE_TOKENS = 128
TILE_SCORES = 8 << 20
_FLOAT32_BYTES = 4


def token_bytes(model: ModelConfig, *, element_bytes: int) -> int:
    """What one token of a step holds at once while it passes through a layer."""
    heads = (model.query_heads + 2 * model.kv_heads) * model.head_dim
    # Residual, norm, projections (4 H), qkv twice (rotated), gate, up and their product.
    return element_bytes * (4 * model.hidden_size + 2 * heads + 3 * model.intermediate_size)


def step_bytes(model: ModelConfig, *, tokens: int, sequences: int, element_bytes: int) -> int:
    """Activations of `tokens` tokens, and the larger of sampling `sequences` rows and scoring a prompt's tokens."""
    rows = max(sequences, tokens)
    return tokens * token_bytes(model, element_bytes=element_bytes) + workspace_bytes(rows, vocab_size=model.vocab_size)


def attention_bytes(model: ModelConfig, *, tokens: int, longest: int, element_bytes: int) -> int:
    """Masks, gathered keys and values, and scores of `tokens` tokens at the end of `longest` tokens of context.

    No profile reaches it: a context as long as the model's maximum takes minutes to compute on a CPU.
    """
    pairs = tokens * longest
    windows = len({layer.window for layer in model.layer_attention})
    # Per window and pair: which are hidden, twice as a boolean, and what is added to the scores.
    masks = windows * pairs * (2 + _FLOAT32_BYTES)
    # Keys and values of one sequence as they are stored, and widened where torch cannot attend in that type.
    gathered = 2 * model.kv_heads * model.head_dim * longest * (element_bytes + _FLOAT32_BYTES)
    # A tile's scores and their softmax.
    tile_scores = model.query_heads * min(tokens, TILE_TOKENS) * longest
    if model.attention_soft_cap is None:
        tile_scores = min(TILE_SCORES, tile_scores)
    scores = 2 * _FLOAT32_BYTES * tile_scores
    return masks + scores + max(ATTENTION_MARGIN_BYTES, gathered)
