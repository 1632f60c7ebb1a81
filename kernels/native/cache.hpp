// A layer's KV cache in the form that products read without another copy.
//
// Its memory is [blocks, 2, kv_heads, block_tokens * head_dim] numbers. A head's keys in a block are panels of 16
// tokens, [block_tokens / 16, head_dim / 2, 16, 2]: a token's pair of numbers beside its neighbour's. Its values are
// [block_tokens / 2, head_dim, 2]: two tokens' numbers side by side.
#pragma once

#include "simd.hpp"

namespace modelfleet {

struct Cache {
  bf16* memory;
  std::int64_t kv_heads, block_tokens, head_dim;

  bf16* keys(std::int64_t block, std::int64_t head) const { return part(block, 0, head); }
  bf16* values(std::int64_t block, std::int64_t head) const { return part(block, 1, head); }

  void write_key(std::int64_t slot, std::int64_t head, const bf16* key) const {
    const std::int64_t offset = slot % block_tokens;
    bf16* to = keys(slot / block_tokens, head) + offset / LANES * LANES * head_dim + offset % LANES * 2;
    for (std::int64_t d = 0; d < head_dim; d += 2) __builtin_memcpy(to + d * LANES, key + d, 2 * sizeof(bf16));
  }

  void write_value(std::int64_t slot, std::int64_t head, const bf16* value) const {
    const std::int64_t offset = slot % block_tokens;
    bf16* to = values(slot / block_tokens, head) + offset / 2 * 2 * head_dim + offset % 2;
    for (std::int64_t d = 0; d < head_dim; ++d) to[2 * d] = value[d];
  }

 private:
  bf16* part(std::int64_t block, std::int64_t kind, std::int64_t head) const {
    return memory + ((2 * block + kind) * kv_heads + head) * block_tokens * head_dim;
  }
};

}  // namespace modelfleet
