// A persistent team of threads that works through the phases of one call together.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace modelfleet {

// Hands out 0, 1, 2, ... to whoever asks. A cache line of its own.
struct alignas(64) Counter {
  std::atomic<std::int64_t> next{0};
};

// The caller is rank 0. Threads that wait spin for some microseconds, which is what a phase takes, and then sleep: on
// shared cores a thread that spins takes the time its own partner needs.
class Team {
 public:
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // Runs body(rank) on every thread and returns when all are done. One call at a time; others wait for it.
  template <class Body>
  void run(Body&& body) {
    run_erased([](void* context, int rank) { (*static_cast<Body*>(context))(rank); }, &body);
  }

  // Within `run`: returns when every rank has come here.
  void barrier();

 private:
  using Erased = void (*)(void*, int);
  void run_erased(Erased body, void* context) noexcept;  // a rank that left early would leave the others waiting
  void work(int rank);
  void wait_while(std::atomic<std::uint32_t>& word, std::uint32_t value);
  void advance(std::atomic<std::uint32_t>& word);

  const int size_;
  std::mutex one_call_;
  Erased body_ = nullptr;
  void* context_ = nullptr;
  bool is_closing_ = false;
  alignas(64) std::atomic<std::uint32_t> calls_{0};
  alignas(64) std::atomic<std::uint32_t> phase_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> sleeping_{0};
  std::vector<std::thread> workers_;
};

// What a rank does within one call: phases that all ranks go through in the same order.
class Phases {
 public:
  Phases(Team& team, Counter* counters) : team_(team), counters_(counters) {}

  // Calls task(0) .. task(count - 1), shared out among the ranks as they get free, and waits for all of them.
  template <class Task>
  void each(std::int64_t count, Task&& task) {
    std::atomic<std::int64_t>& next = counters_[phase_++].next;
    for (std::int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(i);
    team_.barrier();
  }

 private:
  Team& team_;
  Counter* counters_;
  int phase_ = 0;
};

}  // namespace modelfleet
