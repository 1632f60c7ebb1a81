// All layers of a decoder in one call: what `models.decoder` computes op by op, with a float32 residual.
#pragma once

#include <vector>

#include "attention.hpp"
#include "linear.hpp"
#include "rows.hpp"
#include "team.hpp"

namespace modelfleet {

struct Layer {
  Linear qkv, output, gate_up, down;  // gate_up: 16 gates, then their 16 ups, and so on
  const float *input_norm, *query_norm, *key_norm, *output_norm, *mlp_norm, *mlp_output_norm;  // null: none
  std::int64_t window, rope;                                                                   // rope: which tables
};

struct Decoder {
  std::int64_t hidden, intermediate, query_heads, kv_heads, head_dim, block_tokens;
  std::int64_t activation, layer_count;
  float epsilon, attention_scale, soft_cap;
  const float* final_norm;
  const Layer* layers;
};

struct Step {
  Batch batch;
  float* residual;  // [tokens, hidden], overwritten
  const Rope* ropes;
  bf16* const* caches;           // one per layer
  const std::int64_t* outputs;   // [output_count] tokens whose hidden states are wanted
  std::int64_t output_count;
  bf16* hidden;  // [output_count, hidden], the answer
};

void run_decoder(Team& team, const Decoder& decoder, const Step& step);

}  // namespace modelfleet
