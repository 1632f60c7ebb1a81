// AVX-512 with bfloat16 products: loads, stores and the few functions that rows and scores need.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace modelfleet {

using bf16 = std::uint16_t;

constexpr int LANES = 16;  // float32 numbers in a register

inline __mmask16 tail_mask(std::int64_t count) {
  return count >= LANES ? __mmask16(0xffff) : __mmask16((1u << count) - 1);
}

inline __m512 widen(__m256i raw) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}

inline __m512 load_bf16(const bf16* from, __mmask16 mask) { return widen(_mm256_maskz_loadu_epi16(mask, from)); }

inline void store_bf16(bf16* to, __m512 values, __mmask16 mask) {
  _mm256_mask_storeu_epi16(to, mask, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values)));
}

// exp(x) with a relative error below 2e-7 (Cephes' expf in registers): exactly 0 for x <= -104 and -inf, inf where
// float32 ends, and NaN for NaN (the operand on the right is what min and max answer then).
inline __m512 exp_ps(__m512 x) {
  const __m512 clamped = _mm512_max_ps(_mm512_set1_ps(-104.0f), _mm512_min_ps(_mm512_set1_ps(89.0f), x));
  const __m512 turns = _mm512_roundscale_ps(_mm512_mul_ps(clamped, _mm512_set1_ps(1.44269504f)),
                                            _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 rest = _mm512_fnmadd_ps(turns, _mm512_set1_ps(0.693359375f), clamped);
  rest = _mm512_fnmadd_ps(turns, _mm512_set1_ps(-2.12194440e-4f), rest);
  __m512 sum = _mm512_set1_ps(1.9875691500e-4f);
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.3981999507e-3f));
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(8.3334519073e-3f));
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(4.1665795894e-2f));
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.6666665459e-1f));
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(5.0000001201e-1f));
  const __m512 series = _mm512_add_ps(_mm512_fmadd_ps(sum, _mm512_mul_ps(rest, rest), rest), _mm512_set1_ps(1.0f));
  const __m512 result = _mm512_scalef_ps(series, turns);
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(-104.0f), _CMP_NLE_UQ), result);
}

// tanh(x) = 1 - 2 / (exp(2 x) + 1)
inline __m512 tanh_ps(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 denominator = _mm512_add_ps(exp_ps(_mm512_add_ps(x, x)), one);
  return _mm512_sub_ps(one, _mm512_div_ps(_mm512_set1_ps(2.0f), denominator));
}

inline __m512 silu_ps(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  return _mm512_div_ps(x, _mm512_add_ps(exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), x)), one));
}

// Hendrycks & Gimpel 2016, by the tanh formula.
inline __m512 gelu_tanh_ps(__m512 x) {
  const __m512 cubic = _mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(0.044715f));
  const __m512 inner = _mm512_mul_ps(_mm512_fmadd_ps(cubic, x, x), _mm512_set1_ps(0.7978845608f));
  const __m512 half = _mm512_mul_ps(x, _mm512_set1_ps(0.5f));
  return _mm512_fmadd_ps(half, tanh_ps(inner), half);
}

}  // namespace modelfleet
