// The one inner loop of all products: rows of A times panels of B in pairs of bfloat16, accumulated in float32.
#pragma once

#include <utility>

#include "simd.hpp"

namespace modelfleet {

// sums[r][p] += A[r, :] . B[:, lane of panel p] over `pairs` pairs of the inner axis.
//
// A's row r starts at a + r * row_stride. A panel holds, for each pair, 16 lanes of two numbers each; the next pair's
// lanes are `pair_stride` numbers further. Rows go in threes off one pointer, so that the addresses fit the registers.
template <int ROWS, int PANELS>
inline __attribute__((always_inline)) void accumulate(const bf16* a, std::int64_t row_stride,
                                                      const bf16* const (&b)[PANELS], std::int64_t pair_stride,
                                                      std::int64_t pairs, __m512 (&sums)[ROWS][PANELS]) {
  constexpr int THREES = (ROWS + 2) / 3;
  const bf16* rows[THREES];
  for (int i = 0; i < THREES; ++i) rows[i] = a + 3 * i * row_stride;
  const bf16* panel[PANELS];
  for (int p = 0; p < PANELS; ++p) panel[p] = b[p];
#pragma GCC unroll 1
  for (std::int64_t k = 0; k < pairs; ++k) {
    __m512bh lanes[PANELS];
#pragma GCC unroll 8
    for (int p = 0; p < PANELS; ++p) {
      lanes[p] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(panel[p] + k * pair_stride));
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      int pair;
      __builtin_memcpy(&pair, rows[r / 3] + (r % 3) * row_stride + 2 * k, sizeof pair);
      const __m512bh both = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
#pragma GCC unroll 8
      for (int p = 0; p < PANELS; ++p) sums[r][p] = _mm512_dpbf16_ps(sums[r][p], both, lanes[p]);
    }
  }
}

// Calls block(std::integral_constant<int, n>{}, first row) for blocks of at most MOST rows of nearly equal height.
template <int MOST, class Block>
inline void in_row_blocks(std::int64_t rows, Block&& block) {
  const std::int64_t blocks = (rows + MOST - 1) / MOST;
  for (std::int64_t i = 0; i < blocks; ++i) {
    const std::int64_t first = rows * i / blocks, height = rows * (i + 1) / blocks - first;
    [&]<int... N>(std::integer_sequence<int, N...>) {
      (void)((height == N + 1 && (block(std::integral_constant<int, N + 1>{}, first), true)) || ...);
    }(std::make_integer_sequence<int, MOST>{});
  }
}

}  // namespace modelfleet
