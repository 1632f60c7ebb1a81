// What happens to one token's numbers between products: norms, rotation, the cache write, embedding.
#pragma once

#include <cmath>

#include "cache.hpp"
#include "linear.hpp"

namespace modelfleet {

template <class Load>
inline float inverse_rms(std::int64_t width, float epsilon, Load&& load) {
  __m512 squares = _mm512_setzero_ps();
  for (std::int64_t i = 0; i < width; i += LANES) {
    const __m512 x = load(i, tail_mask(width - i));
    squares = _mm512_fmadd_ps(x, x, squares);
  }
  return 1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / float(width) + epsilon);
}

// RMS norm of one row (Zhang & Sennrich 2019): store(i, x[i..] / rms * weight[i..], mask).
template <class Load, class Store>
inline void norm_row(std::int64_t width, const float* weight, float epsilon, Load&& load, Store&& store) {
  const __m512 factor = _mm512_set1_ps(inverse_rms(width, epsilon, load));
  for (std::int64_t i = 0; i < width; i += LANES) {
    const __mmask16 mask = tail_mask(width - i);
    const __m512 scaled = _mm512_mul_ps(load(i, mask), factor);
    store(i, _mm512_mul_ps(scaled, _mm512_maskz_loadu_ps(mask, weight + i)), mask);
  }
}

inline auto floats_from(const float* row) {
  return [=](std::int64_t i, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, row + i); };
}

inline auto halves_from(const bf16* row) {
  return [=](std::int64_t i, __mmask16 mask) { return load_bf16(row + i, mask); };
}

inline auto halves_to(bf16* row) {
  return [=](std::int64_t i, __m512 values, __mmask16 mask) { store_bf16(row + i, values, mask); };
}

// How a token's heads are laid out and turned; see RopeTables. The tables are [tokens, width].
struct Heads {
  std::int64_t query_heads, kv_heads, head_dim;
  const float *query_norm, *key_norm;  // [head_dim] each, or null
  float epsilon;
};

struct Rope {
  const bf16 *cos, *signed_sin;
  std::int64_t width;
};

// One token's qkv row: norms its heads where the model does, rotates queries into `query`, writes keys and values.
inline void rope_write_kv(const Heads& heads, const Rope& rope, const Cache& cache, std::int64_t token,
                          std::int64_t slot, bf16* qkv, bf16* query) {
  const std::int64_t head_dim = heads.head_dim, half = rope.width / 2;
  const bf16 *cos = rope.cos + token * rope.width, *sin = rope.signed_sin + token * rope.width;
  for (std::int64_t head = 0; head < heads.query_heads + heads.kv_heads; ++head) {
    const bool is_query = head < heads.query_heads;
    bf16* x = qkv + head * head_dim;
    if (const float* norm = is_query ? heads.query_norm : heads.key_norm) {
      norm_row(head_dim, norm, heads.epsilon, halves_from(x), halves_to(x));
    }
    bf16* to = is_query ? query + head * head_dim : x;
    for (std::int64_t i = 0; i < half; i += LANES) {
      const __mmask16 mask = tail_mask(half - i);
      const __m512 first = load_bf16(x + i, mask), second = load_bf16(x + half + i, mask);
      const __m512 turned = _mm512_mul_ps(second, load_bf16(sin + i, mask));
      const __m512 back = _mm512_mul_ps(first, load_bf16(sin + half + i, mask));
      store_bf16(to + i, _mm512_fmadd_ps(first, load_bf16(cos + i, mask), turned), mask);
      store_bf16(to + half + i, _mm512_fmadd_ps(second, load_bf16(cos + half + i, mask), back), mask);
    }
    if (is_query) {
      __builtin_memcpy(to + rope.width, x + rope.width, (head_dim - rope.width) * sizeof(bf16));
    } else {
      cache.write_key(slot, head - heads.query_heads, x);
    }
  }
  const bf16* values = qkv + (heads.query_heads + heads.kv_heads) * head_dim;
  for (std::int64_t head = 0; head < heads.kv_heads; ++head) cache.write_value(slot, head, values + head * head_dim);
}

// A weight's row `output`, back from its panels.
inline void unpack_row(const Linear& layer, std::int64_t output, bf16* to) {
  const bf16* from = layer.panels + output / PANEL_OUTPUTS * layer.inputs * PANEL_OUTPUTS + output % PANEL_OUTPUTS * 2;
  for (std::int64_t k = 0; k < layer.inputs; k += 2) {
    __builtin_memcpy(to + k, from + k * PANEL_OUTPUTS, 2 * sizeof(bf16));
  }
}

}  // namespace modelfleet
