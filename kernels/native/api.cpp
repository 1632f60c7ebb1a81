// The C interface that Python loads. No call keeps a pointer; nothing here allocates what the caller frees, but teams.
// What throws, for want of memory or threads, finds no handler in the caller's C and ends the process with its message.

#include "decoder.hpp"

using namespace modelfleet;

namespace {

// Shares out tasks that need nothing but their number.
template <class Task>
void share_out(Team& team, std::int64_t count, Task&& task) {
  Counter counter;
  team.run([&](int) { Phases(team, &counter).each(count, task); });
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// Differs where Python's structs are those of other sources.
std::int64_t modelfleet_struct_bytes() {
  return sizeof(Linear) + sizeof(Cache) + sizeof(Batch) + sizeof(AttentionForm) + sizeof(Heads) + sizeof(Rope) +
         sizeof(Layer) + sizeof(Decoder) + sizeof(Step);
}

Team* modelfleet_team_create(int threads) { return new Team(threads); }

void modelfleet_team_destroy(Team* team) { delete team; }

std::int64_t modelfleet_packed_numbers(std::int64_t outputs, std::int64_t inputs) {
  return Linear{nullptr, nullptr, outputs, inputs}.panel_count() * PANEL_OUTPUTS * inputs;
}

void modelfleet_pack(Team* team, const bf16* weight, std::int64_t outputs, std::int64_t inputs, bf16* panels) {
  const Linear layer{panels, nullptr, outputs, inputs};
  share_out(*team, layer.panel_count(),
            [&](std::int64_t panel) { pack_panel(weight, outputs, inputs, panel, panels); });
}

void modelfleet_unpack_rows(Team* team, const Linear* layer, const std::int64_t* outputs, std::int64_t count, bf16* to) {
  share_out(*team, count, [&](std::int64_t row) { unpack_row(*layer, outputs[row], to + row * layer->inputs); });
}

void modelfleet_linear(Team* team, const Linear* layer, const bf16* x, std::int64_t rows, bf16* y) {
  share_out(*team, layer->task_count(rows), [&](std::int64_t task) {
    multiply_task(*layer, x, rows, task, store_as_bf16(y, layer->outputs));
  });
}

void modelfleet_linear_float(Team* team, const Linear* layer, const bf16* x, std::int64_t rows, float* y) {
  share_out(*team, layer->task_count(rows), [&](std::int64_t task) {
    multiply_task(*layer, x, rows, task, store_as_float(y, layer->outputs));
  });
}

void modelfleet_gated_linear(Team* team, const Linear* layer, const bf16* x, std::int64_t rows, std::int64_t activation,
                             bf16* y) {
  const auto store = store_gated(y, layer->outputs / 2, Activation(activation));
  share_out(*team, layer->task_count(rows),
            [&](std::int64_t task) { multiply_task(*layer, x, rows, task, store); });
}

void modelfleet_rms_norm(Team* team, const bf16* x, std::int64_t rows, std::int64_t width, const float* weight,
                         float epsilon, bf16* y) {
  share_out(*team, rows, [&](std::int64_t row) {
    norm_row(width, weight, epsilon, halves_from(x + row * width), halves_to(y + row * width));
  });
}

void modelfleet_gated(Team* team, const bf16* gate_up, std::int64_t rows, std::int64_t width, std::int64_t activation,
                      bf16* y) {
  share_out(*team, rows, [&](std::int64_t row) {
    const bf16 *gate = gate_up + row * 2 * width, *up = gate + width;
    for (std::int64_t i = 0; i < width; i += LANES) {
      const __mmask16 mask = tail_mask(width - i);
      const __m512 active = activate(Activation(activation), load_bf16(gate + i, mask));
      store_bf16(y + row * width + i, _mm512_mul_ps(active, load_bf16(up + i, mask)), mask);
    }
  });
}

void modelfleet_rope_write_kv(Team* team, const Heads* heads, const Rope* rope, const Cache* cache,
                              const std::int64_t* slots, std::int64_t tokens, bf16* qkv, bf16* query) {
  const std::int64_t query_width = heads->query_heads * heads->head_dim;
  const std::int64_t width = query_width + 2 * heads->kv_heads * heads->head_dim;
  share_out(*team, tokens, [&](std::int64_t token) {
    rope_write_kv(*heads, *rope, *cache, token, slots[token], qkv + token * width, query + token * query_width);
  });
}

void modelfleet_paged_attention(Team* team, const Batch* batch, const AttentionForm* form, const Cache* cache,
                                const bf16* query, std::int64_t query_heads, bf16* output) {
  const std::vector<AttentionTask> tasks = attention_tasks(*batch, query_heads, cache->kv_heads);
  Counter counter;
  team->run([&](int) {
    AttentionScratch scratch(cache->head_dim);
    Phases(*team, &counter).each(std::int64_t(tasks.size()), [&](std::int64_t task) {
      attend(tasks[task], *batch, *form, *cache, query, query_heads, output, scratch);
    });
  });
}

void modelfleet_run_decoder(Team* team, const Decoder* decoder, const Step* step) { run_decoder(*team, *decoder, *step); }

}  // extern "C"
#pragma GCC visibility pop
