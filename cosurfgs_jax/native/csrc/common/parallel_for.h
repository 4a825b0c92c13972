// A parallel loop on XLA's own thread pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

namespace cosurfgs {

// Runs fn(i) for i in [0, n), in any order. The caller takes items too: a handler that only waits
// for the pool can hang when every pool thread is waiting likewise. Helpers may start late or
// never, hence the shared state. fn must not throw.
class Parallel {
 public:
  explicit Parallel(xla::ffi::ThreadPool pool)
      : pool_(pool),
        max_threads_(std::min<int64_t>(pool.num_threads(),
                                       std::max(1u, std::thread::hardware_concurrency()))) {}

  int64_t max_threads() const { return max_threads_; }

  template <class Function>
  void For(int64_t n, Function fn) {
    if (n <= 0) return;
    if (n == 1 || max_threads_ == 1) {
      for (int64_t i = 0; i < n; ++i) fn(i);
      return;
    }
    struct State {
      std::atomic<int64_t> next{0}, done{0};
      int64_t n;
      std::function<void(int64_t)> fn;
    };
    auto state = std::make_shared<State>();
    state->n = n;
    state->fn = fn;
    auto body = [state] {
      for (int64_t i; (i = state->next.fetch_add(1)) < state->n;) {
        state->fn(i);
        state->done.fetch_add(1, std::memory_order_acq_rel);
      }
    };
    for (int64_t helper = 0; helper < std::min(max_threads_ - 1, n - 1); ++helper) {
      auto copy = body;
      pool_.Schedule(std::move(copy));
    }
    body();
    while (state->done.load(std::memory_order_acquire) < n) std::this_thread::yield();
  }

 private:
  xla::ffi::ThreadPool pool_;
  int64_t max_threads_;
};

}  // namespace cosurfgs
