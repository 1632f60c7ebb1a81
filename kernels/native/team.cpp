#include "team.hpp"

#include <immintrin.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace modelfleet {

namespace {
constexpr int SPINS = 4000;  // tens of microseconds

long futex(std::atomic<std::uint32_t>& word, int operation, std::uint32_t value) {
  return syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), operation, value, nullptr, nullptr, 0);
}
}  // namespace

Team::Team(int threads) : size_(threads < 1 ? 1 : threads) {
  for (int rank = 1; rank < size_; ++rank) workers_.emplace_back([this, rank] { work(rank); });
}

Team::~Team() {
  is_closing_ = true;
  advance(calls_);
  for (std::thread& worker : workers_) worker.join();
}

void Team::run_erased(Erased body, void* context) noexcept {
  const std::lock_guard<std::mutex> guard(one_call_);
  body_ = body;
  context_ = context;
  if (size_ > 1) advance(calls_);
  body(context, 0);
  barrier();
}

void Team::work(int rank) {
  for (std::uint32_t seen = 0;; ++seen) {
    wait_while(calls_, seen);
    if (is_closing_) return;
    body_(context_, rank);
    barrier();
  }
}

void Team::barrier() {
  if (size_ == 1) return;
  const std::uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    advance(phase_);
  } else {
    wait_while(phase_, phase);
  }
}

void Team::wait_while(std::atomic<std::uint32_t>& word, std::uint32_t value) {
  for (int spin = 0; spin < SPINS; ++spin) {
    if (word.load(std::memory_order_acquire) != value) return;
    _mm_pause();
  }
  // Announced before the word is read again, and read after the word is written: nobody sleeps through a wake.
  sleeping_.fetch_add(1);
  while (word.load() == value) futex(word, FUTEX_WAIT_PRIVATE, value);
  sleeping_.fetch_sub(1);
}

void Team::advance(std::atomic<std::uint32_t>& word) {
  word.fetch_add(1);
  if (sleeping_.load() != 0) futex(word, FUTEX_WAKE_PRIVATE, 0x7fffffff);
}

}  // namespace modelfleet
