// Causal grouped-query attention over a paged cache, one task at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "cache.hpp"

namespace modelfleet {

// The step's rows; see PagedBatch. Row s computes tokens [starts[s], starts[s + 1]), the last of its lengths[s].
struct Batch {
  std::int64_t tokens, rows, table_width;
  const std::int64_t* starts;      // [rows + 1]
  const std::int64_t* lengths;     // [rows]
  const std::int64_t* tables;      // [rows, table_width]
  const std::int64_t* slots;       // [tokens]
};

struct AttentionForm {
  float scale;
  float soft_cap;       // 0: none
  std::int64_t window;  // 0: everything before
};

// Query rows [first, last) of one row of the step and one KV head; query row f is token f / G, head f % G of G.
struct AttentionTask {
  std::int64_t row, head, first, last;
};

// Every task of a batch, those with the most keys first.
std::vector<AttentionTask> attention_tasks(const Batch& batch, std::int64_t query_heads, std::int64_t kv_heads);

// Memory of one thread for any task.
class AttentionScratch {
 public:
  explicit AttentionScratch(std::int64_t head_dim);
  bf16 *query, *weights;
  float *scores, *sums;

 private:
  std::vector<std::uint64_t> memory_;
};

// query and output are [tokens, query_heads * head_dim].
void attend(const AttentionTask& task, const Batch& batch, const AttentionForm& form, const Cache& cache,
            const bf16* query, std::int64_t query_heads, bf16* output, AttentionScratch& scratch);

}  // namespace modelfleet
