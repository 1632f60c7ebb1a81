// Flash attention (Dao et al. 2022) over blocks: scores of a chunk of keys, running maxima and sums, weighted values.

#include "attention.hpp"

#include <algorithm>
#include <cmath>

#include "product.hpp"

namespace modelfleet {

namespace {

constexpr std::int64_t TILE_ROWS = 48;    // query rows of a task: a chunk's keys and values are read once for them
constexpr std::int64_t CHUNK_KEYS = 256;  // keys whose scores exist at once
constexpr float NOTHING_YET = -1e30f;     // finite, so that differences of maxima never are NaN

// What a tile's query rows see of their sequence.
struct Tile {
  const AttentionForm& form;
  const Cache& cache;
  const std::int64_t* table;
  std::int64_t head, rows, first_row, group, past;  // past: the sequence's tokens before this step's

  std::int64_t end_of(std::int64_t row) const { return past + (first_row + row) / group + 1; }
  std::int64_t begin_of(std::int64_t row) const {
    return form.window == 0 ? 0 : std::max<std::int64_t>(0, end_of(row) - form.window);
  }
  const bf16* keys(std::int64_t position) const {  // the panel of 16 that starts there
    return cache.keys(table[position / cache.block_tokens], head) + position % cache.block_tokens * cache.head_dim;
  }
  const bf16* values(std::int64_t position) const {  // from an even position on
    return cache.values(table[position / cache.block_tokens], head) + position % cache.block_tokens * cache.head_dim;
  }
};

template <int PANELS>
void score_panels(const Tile& tile, std::int64_t position, const bf16* query, float* scores) {
  const std::int64_t head_dim = tile.cache.head_dim;
  const bf16* panels[PANELS];
  for (int p = 0; p < PANELS; ++p) panels[p] = tile.keys(position + p * LANES);
  const __m512 scale = _mm512_set1_ps(tile.form.scale);
  in_row_blocks<PANELS == 4 ? 6 : 12>(tile.rows, [&](auto height, std::int64_t first) {
    __m512 sums[height][PANELS];
    for (int r = 0; r < height; ++r) {
      for (int p = 0; p < PANELS; ++p) sums[r][p] = _mm512_setzero_ps();
    }
    accumulate<height, PANELS>(query + first * head_dim, head_dim, panels, 2 * LANES, head_dim / 2, sums);
    for (int r = 0; r < height; ++r) {
      for (int p = 0; p < PANELS; ++p) {
        _mm512_storeu_ps(scores + (first + r) * CHUNK_KEYS + p * LANES, _mm512_mul_ps(sums[r][p], scale));
      }
    }
  });
}

void score_chunk(const Tile& tile, std::int64_t position, std::int64_t panels, const bf16* query, float* scores) {
  std::int64_t panel = 0;
  for (; panel + 4 <= panels; panel += 4) {
    score_panels<4>(tile, position + panel * LANES, query, scores + panel * LANES);
  }
  for (; panel < panels; ++panel) score_panels<1>(tile, position + panel * LANES, query, scores + panel * LANES);
}

// What a row does not see becomes -inf; answers the row's maximum.
float mask_and_cap(const Tile& tile, std::int64_t row, std::int64_t position, std::int64_t panels, float* scores) {
  const std::int64_t begin = tile.begin_of(row) - position, end = tile.end_of(row) - position;
  __m512 most = _mm512_set1_ps(NOTHING_YET);
  for (std::int64_t panel = 0; panel < panels; ++panel) {
    const std::int64_t first = panel * LANES;
    __m512 values = _mm512_loadu_ps(scores + first);
    if (tile.form.soft_cap > 0) {
      const __m512 cap = _mm512_set1_ps(tile.form.soft_cap);
      values = _mm512_mul_ps(tanh_ps(_mm512_div_ps(values, cap)), cap);
    }
    __mmask16 seen = end <= first ? __mmask16(0) : tail_mask(end - first);
    if (begin > first) seen &= begin - first >= LANES ? __mmask16(0) : __mmask16(~tail_mask(begin - first));
    values = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), seen, values);
    _mm512_storeu_ps(scores + first, values);
    most = _mm512_max_ps(most, values);
  }
  return _mm512_reduce_max_ps(most);
}

// exp(score - most) as bfloat16; answers their sum in float32.
float exponentials(const float* scores, std::int64_t panels, float most, bf16* weights) {
  __m512 total = _mm512_setzero_ps();
  for (std::int64_t panel = 0; panel < panels; ++panel) {
    const __m512 values = exp_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + panel * LANES), _mm512_set1_ps(most)));
    total = _mm512_add_ps(total, values);
    store_bf16(weights + panel * LANES, values, 0xffff);
  }
  return _mm512_reduce_add_ps(total);
}

void scale_row(float* sums, std::int64_t count, float factor) {
  for (std::int64_t d = 0; d < count; d += LANES) {
    _mm512_storeu_ps(sums + d, _mm512_mul_ps(_mm512_loadu_ps(sums + d), _mm512_set1_ps(factor)));
  }
}

// What `weigh_values` does for a sequence's last value where its neighbour is past the end: that one may be anything
// that another request left there, and a NaN stays one however little it weighs.
template <int HEIGHT, int PANELS>
void weigh_last_value(const bf16* const (&panels)[PANELS], const bf16* weights, __m512 (&partial)[HEIGHT][PANELS]) {
  bf16 alone[PANELS][2 * LANES];
  const bf16* lanes[PANELS];
  for (int p = 0; p < PANELS; ++p) {
    const __m512i pair = _mm512_loadu_si512(panels[p]);
    _mm512_storeu_si512(alone[p], _mm512_and_si512(pair, _mm512_set1_epi32(0xffff)));
    lanes[p] = alone[p];
  }
  accumulate<HEIGHT, PANELS>(weights, CHUNK_KEYS, lanes, 0, 1, partial);
}

// sums[row] += weights[row] . values for PANELS * 16 numbers of each value from `first_number` on.
template <int PANELS>
void weigh_values(const Tile& tile, std::int64_t position, std::int64_t keys, std::int64_t first_number,
                  const bf16* weights, float* sums) {
  const std::int64_t head_dim = tile.cache.head_dim, block_tokens = tile.cache.block_tokens;
  in_row_blocks<PANELS == 4 ? 6 : 12>(tile.rows, [&](auto height, std::int64_t first) {
    __m512 partial[height][PANELS];
    float* to = sums + first * head_dim + first_number;
    for (int r = 0; r < height; ++r) {
      for (int p = 0; p < PANELS; ++p) partial[r][p] = _mm512_loadu_ps(to + r * head_dim + p * LANES);
    }
    for (std::int64_t done = 0; done < keys;) {
      const std::int64_t at = position + done;
      const std::int64_t count = std::min(keys - done, block_tokens - at % block_tokens);
      const bf16* panels[PANELS];
      for (int p = 0; p < PANELS; ++p) panels[p] = tile.values(at) + 2 * (first_number + p * LANES);
      const bf16* of_rows = weights + first * CHUNK_KEYS + done;
      accumulate<height, PANELS>(of_rows, CHUNK_KEYS, panels, 2 * head_dim, count / 2, partial);
      if (count % 2 != 0) {
        for (int p = 0; p < PANELS; ++p) panels[p] += count / 2 * 2 * head_dim;
        weigh_last_value<height, PANELS>(panels, of_rows + count - 1, partial);
      }
      done += count;
    }
    for (int r = 0; r < height; ++r) {
      for (int p = 0; p < PANELS; ++p) _mm512_storeu_ps(to + r * head_dim + p * LANES, partial[r][p]);
    }
  });
}

void add_chunk(const Tile& tile, std::int64_t position, std::int64_t keys, AttentionScratch& scratch, float* most,
               float* totals) {
  const std::int64_t panels = (keys + LANES - 1) / LANES, head_dim = tile.cache.head_dim;
  score_chunk(tile, position, panels, scratch.query, scratch.scores);
  for (std::int64_t row = 0; row < tile.rows; ++row) {
    float* scores = scratch.scores + row * CHUNK_KEYS;
    const float now = std::max(most[row], mask_and_cap(tile, row, position, panels, scores));
    if (now > most[row]) {
      const float factor = std::exp(most[row] - now);
      scale_row(scratch.sums + row * head_dim, head_dim, factor);
      totals[row] *= factor;
      most[row] = now;
    }
    totals[row] += exponentials(scores, panels, now, scratch.weights + row * CHUNK_KEYS);
  }
  std::int64_t number = 0;
  for (; number + 4 * LANES <= head_dim; number += 4 * LANES) {
    weigh_values<4>(tile, position, keys, number, scratch.weights, scratch.sums);
  }
  for (; number < head_dim; number += LANES) {
    weigh_values<1>(tile, position, keys, number, scratch.weights, scratch.sums);
  }
}

}  // namespace

AttentionScratch::AttentionScratch(std::int64_t head_dim) {
  const std::int64_t floats = TILE_ROWS * (CHUNK_KEYS + head_dim), halves = floats;
  memory_.resize((floats * sizeof(float) + halves * sizeof(bf16)) / sizeof(std::uint64_t) + 1);
  scores = reinterpret_cast<float*>(memory_.data());
  sums = scores + TILE_ROWS * CHUNK_KEYS;
  query = reinterpret_cast<bf16*>(sums + TILE_ROWS * head_dim);
  weights = query + TILE_ROWS * head_dim;
}

std::vector<AttentionTask> attention_tasks(const Batch& batch, std::int64_t query_heads, std::int64_t kv_heads) {
  std::vector<AttentionTask> tasks;
  for (std::int64_t row = 0; row < batch.rows; ++row) {
    const std::int64_t count = (batch.starts[row + 1] - batch.starts[row]) * (query_heads / kv_heads);
    for (std::int64_t head = 0; head < kv_heads; ++head) {
      for (std::int64_t first = 0; first < count; first += TILE_ROWS) {
        tasks.push_back({row, head, first, std::min(count, first + TILE_ROWS)});
      }
    }
  }
  // A long prompt's last tile is a thousand times the work of a short one's first: taken first, nobody waits for it.
  const auto work = [&](const AttentionTask& task) {
    return (batch.lengths[task.row] - batch.starts[task.row + 1] + batch.starts[task.row]) * (task.last - task.first) +
           task.last * task.last;
  };
  std::stable_sort(tasks.begin(), tasks.end(), [&](const auto& a, const auto& b) { return work(a) > work(b); });
  return tasks;
}

void attend(const AttentionTask& task, const Batch& batch, const AttentionForm& form, const Cache& cache,
            const bf16* query, std::int64_t query_heads, bf16* output, AttentionScratch& scratch) {
  const std::int64_t group = query_heads / cache.kv_heads, head_dim = cache.head_dim, rows = task.last - task.first;
  const std::int64_t start = batch.starts[task.row], count = batch.starts[task.row + 1] - start;
  const Tile tile{form,  cache,      batch.tables + task.row * batch.table_width, task.head, rows, task.first,
                  group, batch.lengths[task.row] - count};
  const auto offset = [&](std::int64_t row) {  // of a query row in query and output
    const std::int64_t token = start + (task.first + row) / group;
    return (token * query_heads + task.head * group + (task.first + row) % group) * head_dim;
  };
  float most[TILE_ROWS], totals[TILE_ROWS];
  for (std::int64_t row = 0; row < rows; ++row) {
    __builtin_memcpy(scratch.query + row * head_dim, query + offset(row), head_dim * sizeof(bf16));
    most[row] = NOTHING_YET;
    totals[row] = 0;
  }
  std::fill_n(scratch.sums, rows * head_dim, 0.0f);
  const std::int64_t end = tile.end_of(rows - 1);
  for (std::int64_t at = tile.begin_of(0) / LANES * LANES; at < end; at += CHUNK_KEYS) {
    add_chunk(tile, at, std::min(CHUNK_KEYS, end - at), scratch, most, totals);
  }
  for (std::int64_t row = 0; row < rows; ++row) {
    const __m512 factor = _mm512_set1_ps(1.0f / totals[row]);
    for (std::int64_t d = 0; d < head_dim; d += LANES) {
      const __m512 sums = _mm512_loadu_ps(scratch.sums + row * head_dim + d);
      store_bf16(output + offset(row) + d, _mm512_mul_ps(sums, factor), 0xffff);
    }
  }
}

}  // namespace modelfleet
