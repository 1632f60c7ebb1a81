#include "decoder.hpp"

#include <algorithm>
#include <memory>

namespace modelfleet {

namespace {

constexpr int PHASES_OF_A_LAYER = 12;  // at most
constexpr std::size_t ALIGNMENT = 64;

// Uninitialised memory of the call, aligned to cache lines.
template <class T>
class Buffer {
 public:
  explicit Buffer(std::int64_t count)
      : memory_(new(std::align_val_t(ALIGNMENT)) std::byte[std::size_t(count) * sizeof(T) + ALIGNMENT]) {}
  ~Buffer() { ::operator delete[](memory_, std::align_val_t(ALIGNMENT)); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() { return reinterpret_cast<T*>(memory_); }
  T* row(std::int64_t index, std::int64_t width) { return get() + index * width; }

 private:
  std::byte* memory_;
};

// One call's memory and what all ranks share.
struct Call {
  Call(Team& team, const Decoder& decoder, const Step& step)
      : decoder(decoder),
        step(step),
        tasks(attention_tasks(step.batch, decoder.query_heads, decoder.kv_heads)),
        counters(new Counter[decoder.layer_count * PHASES_OF_A_LAYER + 1]),
        normed(step.batch.tokens * decoder.hidden),
        qkv(step.batch.tokens * (decoder.query_heads + 2 * decoder.kv_heads) * decoder.head_dim),
        query(step.batch.tokens * decoder.query_heads * decoder.head_dim),
        attended(step.batch.tokens * decoder.query_heads * decoder.head_dim),
        inner(step.batch.tokens * decoder.intermediate),
        projected(has_output_norms() ? step.batch.tokens * decoder.hidden : 0),
        last_residual(step.output_count * decoder.hidden),
        last_attended(step.output_count * decoder.query_heads * decoder.head_dim) {
    for (int rank = 0; rank < team.size(); ++rank) scratch.emplace_back(decoder.head_dim);
  }

  bool has_output_norms() const {
    return std::any_of(decoder.layers, decoder.layers + decoder.layer_count, [](const Layer& layer) {
      return layer.output_norm != nullptr || layer.mlp_output_norm != nullptr;
    });
  }

  const Decoder& decoder;
  const Step& step;
  const std::vector<AttentionTask> tasks;
  const std::unique_ptr<Counter[]> counters;
  Buffer<bf16> normed, qkv, query, attended, inner;
  Buffer<float> projected, last_residual;
  Buffer<bf16> last_attended;
  std::vector<AttentionScratch> scratch;
};

// What one rank does: the phases of all layers.
class Rank {
 public:
  Rank(Team& team, Call& call, int rank)
      : call_(call),
        decoder_(call.decoder),
        step_(call.step),
        phases_(team, call.counters.get()),
        scratch_(call.scratch[rank]),
        residual_(call.step.residual),
        rows_(call.step.batch.tokens),
        attended_(call.attended.get()) {}

  void run() {
    norm(decoder_.layers[0].input_norm, call_.normed.get());
    for (std::int64_t index = 0; index < decoder_.layer_count; ++index) {
      const Layer& layer = decoder_.layers[index];
      const bool is_last = index + 1 == decoder_.layer_count;
      attention(layer, step_.caches[index]);
      if (is_last) keep_outputs();
      add_projection(layer.output, attended_, layer.output_norm);
      norm(layer.mlp_norm, call_.normed.get());
      const auto gated = store_gated(call_.inner.get(), decoder_.intermediate, Activation(decoder_.activation));
      multiply(layer.gate_up, call_.normed.get(), gated);
      add_projection(layer.down, call_.inner.get(), layer.mlp_output_norm);
      norm(is_last ? decoder_.final_norm : decoder_.layers[index + 1].input_norm,
           is_last ? step_.hidden : call_.normed.get());
    }
  }

 private:
  template <class Store>
  void multiply(const Linear& layer, const bf16* x, Store&& store) {
    phases_.each(layer.task_count(rows_), [&](std::int64_t task) { multiply_task(layer, x, rows_, task, store); });
  }

  // normed = norm of the residual
  void norm(const float* weight, bf16* normed) {
    const std::int64_t hidden = decoder_.hidden;
    phases_.each(rows_, [&](std::int64_t row) {
      norm_row(hidden, weight, decoder_.epsilon, floats_from(residual_ + row * hidden), halves_to(normed + row * hidden));
    });
  }

  // residual += layer(x), normed before if the model does that
  void add_projection(const Linear& layer, const bf16* x, const float* output_norm) {
    const std::int64_t hidden = decoder_.hidden;
    if (output_norm == nullptr) return multiply(layer, x, add_to(residual_, hidden));
    multiply(layer, x, store_as_float(call_.projected.get(), hidden));
    phases_.each(rows_, [&](std::int64_t row) {
      float* to = residual_ + row * hidden;
      norm_row(hidden, output_norm, decoder_.epsilon, floats_from(call_.projected.row(row, hidden)),
               [=](std::int64_t i, __m512 values, __mmask16 mask) {
                 _mm512_mask_storeu_ps(to + i, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to + i), values));
               });
    });
  }

  void attention(const Layer& layer, bf16* memory) {
    const Cache cache{memory, decoder_.kv_heads, decoder_.block_tokens, decoder_.head_dim};
    const Heads heads{decoder_.query_heads, decoder_.kv_heads,  decoder_.head_dim,
                      layer.query_norm,     layer.key_norm, decoder_.epsilon};
    const std::int64_t qkv_width = layer.qkv.outputs, query_width = decoder_.query_heads * decoder_.head_dim;
    multiply(layer.qkv, call_.normed.get(), store_as_bf16(call_.qkv.get(), qkv_width));
    phases_.each(rows_, [&](std::int64_t token) {
      rope_write_kv(heads, step_.ropes[layer.rope], cache, token, step_.batch.slots[token],
                    call_.qkv.row(token, qkv_width), call_.query.row(token, query_width));
    });
    const AttentionForm form{decoder_.attention_scale, decoder_.soft_cap, layer.window};
    phases_.each(std::int64_t(call_.tasks.size()), [&](std::int64_t task) {
      attend(call_.tasks[task], step_.batch, form, cache, call_.query.get(), decoder_.query_heads, attended_, scratch_);
    });
  }

  // Only the wanted tokens go on: what follows the last attention is per token.
  void keep_outputs() {
    const std::int64_t hidden = decoder_.hidden, query_width = decoder_.query_heads * decoder_.head_dim;
    phases_.each(step_.output_count, [&](std::int64_t row) {
      const std::int64_t token = step_.outputs[row];
      __builtin_memcpy(call_.last_residual.row(row, hidden), residual_ + token * hidden, hidden * sizeof(float));
      __builtin_memcpy(call_.last_attended.row(row, query_width), attended_ + token * query_width,
                       query_width * sizeof(bf16));
    });
    residual_ = call_.last_residual.get();
    attended_ = call_.last_attended.get();
    rows_ = step_.output_count;
  }

  Call& call_;
  const Decoder& decoder_;
  const Step& step_;
  Phases phases_;
  AttentionScratch& scratch_;
  float* residual_;
  std::int64_t rows_;
  bf16* attended_;
};

}  // namespace

void run_decoder(Team& team, const Decoder& decoder, const Step& step) {
  Call call(team, decoder, step);
  team.run([&](int rank) { Rank(team, call, rank).run(); });
}

}  // namespace modelfleet
