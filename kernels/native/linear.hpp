// Linear layers over weights packed once: y = x W^T + b.
#pragma once

#include <cstdint>

#include "product.hpp"
#include "team.hpp"

namespace modelfleet {

constexpr std::int64_t PANEL_OUTPUTS = 32;
constexpr int MOST_ROWS = 14;              // 28 sums, two lanes of the weight and one pair fill the registers
constexpr std::int64_t TASK_ROWS = 8 * MOST_ROWS;  // a panel stays in the second-level cache over so many rows

// A weight [outputs, inputs] as panels of 32 outputs: [ceil(outputs / 32), inputs / 2, 32, 2], zeros past the end.
struct Linear {
  const bf16* panels;
  const float* bias;  // [outputs] or null
  std::int64_t outputs, inputs;

  std::int64_t panel_count() const { return (outputs + PANEL_OUTPUTS - 1) / PANEL_OUTPUTS; }
  std::int64_t task_count(std::int64_t rows) const { return panel_count() * ((rows + TASK_ROWS - 1) / TASK_ROWS); }
};

// Writes one panel of a weight [outputs, inputs] into the memory of all.
void pack_panel(const bf16* weight, std::int64_t outputs, std::int64_t inputs, std::int64_t panel, bf16* panels);

// One task of `task_count`: store(row, first output, outputs' 0..15, outputs' 16..31) for each of its rows.
template <class Store>
inline void multiply_task(const Linear& layer, const bf16* x, std::int64_t rows, std::int64_t task, Store&& store) {
  const std::int64_t panel = task % layer.panel_count(), row_tasks = (rows + TASK_ROWS - 1) / TASK_ROWS;
  const std::int64_t part = task / layer.panel_count();
  const std::int64_t first_row = rows * part / row_tasks, last_row = rows * (part + 1) / row_tasks;
  const bf16* lanes = layer.panels + panel * layer.inputs * PANEL_OUTPUTS;
  const bf16* const halves[2] = {lanes, lanes + 2 * LANES};
  const std::int64_t output = panel * PANEL_OUTPUTS;
  __m512 bias[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  if (layer.bias != nullptr) {
    const std::int64_t left = layer.outputs - output;
    bias[0] = _mm512_maskz_loadu_ps(tail_mask(left), layer.bias + output);
    if (left > LANES) bias[1] = _mm512_maskz_loadu_ps(tail_mask(left - LANES), layer.bias + output + LANES);
  }
  in_row_blocks<MOST_ROWS>(last_row - first_row, [&](auto height, std::int64_t block) {
    __m512 sums[height][2];
    for (int r = 0; r < height; ++r) sums[r][0] = bias[0], sums[r][1] = bias[1];
    accumulate<height, 2>(x + (first_row + block) * layer.inputs, layer.inputs, halves, 2 * PANEL_OUTPUTS,
                          layer.inputs / 2, sums);
    for (int r = 0; r < height; ++r) store(first_row + block + r, output, sums[r][0], sums[r][1]);
  });
}

// Stores for `multiply_task`: y is [rows, outputs].
inline auto store_as_bf16(bf16* y, std::int64_t outputs) {
  return [=](std::int64_t row, std::int64_t output, __m512 first, __m512 second) {
    bf16* to = y + row * outputs + output;
    const std::int64_t left = outputs - output;
    store_bf16(to, first, tail_mask(left));
    if (left > LANES) store_bf16(to + LANES, second, tail_mask(left - LANES));
  };
}

inline auto store_as_float(float* y, std::int64_t outputs) {
  return [=](std::int64_t row, std::int64_t output, __m512 first, __m512 second) {
    float* to = y + row * outputs + output;
    const std::int64_t left = outputs - output;
    _mm512_mask_storeu_ps(to, tail_mask(left), first);
    if (left > LANES) _mm512_mask_storeu_ps(to + LANES, tail_mask(left - LANES), second);
  };
}

inline auto add_to(float* y, std::int64_t outputs) {
  return [=](std::int64_t row, std::int64_t output, __m512 first, __m512 second) {
    float* to = y + row * outputs + output;
    const std::int64_t left = outputs - output;
    const __mmask16 low = tail_mask(left);
    _mm512_mask_storeu_ps(to, low, _mm512_add_ps(_mm512_maskz_loadu_ps(low, to), first));
    if (left <= LANES) return;
    const __mmask16 high = tail_mask(left - LANES);
    _mm512_mask_storeu_ps(to + LANES, high, _mm512_add_ps(_mm512_maskz_loadu_ps(high, to + LANES), second));
  };
}

enum class Activation : std::int32_t { silu = 0, gelu_tanh = 1 };

inline __m512 activate(Activation activation, __m512 gate) {
  return activation == Activation::silu ? silu_ps(gate) : gelu_tanh_ps(gate);
}

// For weights whose panels hold 16 gates and their 16 ups: y [rows, width] = activation(gate) * up.
inline auto store_gated(bf16* y, std::int64_t width, Activation activation) {
  return [=](std::int64_t row, std::int64_t output, __m512 gate, __m512 up) {
    const std::int64_t column = output / 2;
    store_bf16(y + row * width + column, _mm512_mul_ps(activate(activation, gate), up), tail_mask(width - column));
  };
}

}  // namespace modelfleet
