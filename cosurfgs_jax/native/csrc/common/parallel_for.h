// A parallel loop on XLA's own thread pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace cosurfgs {

// Runs fn(i) for i in [0, n), in any order. The caller takes items too: a handler that only waits
// for the pool can hang when every pool thread is waiting likewise. Helpers may start late or
// never, hence the shared state. fn must not throw.
//
// ThreadSanitizer does not see how XLA hands work to its pool and arrays from one call to the next,
// and would take both for races. With it, helpers are threads of their own, and a call that ended
// before another began is in order with it.
class Parallel {
 public:
  explicit Parallel(xla::ffi::ThreadPool pool)
      : pool_(pool),
        max_threads_(std::min<int64_t>(pool.num_threads(),
                                       std::max(1u, std::thread::hardware_concurrency()))) {
#if defined(__SANITIZE_THREAD__)
    Calls().fetch_add(1, std::memory_order_acquire);
#endif
  }
#if defined(__SANITIZE_THREAD__)
  ~Parallel() { Calls().fetch_add(1, std::memory_order_release); }
  Parallel(const Parallel&) = delete;
#endif

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
    const int64_t num_helpers = std::min(max_threads_ - 1, n - 1);
#if defined(__SANITIZE_THREAD__)
    std::atomic<int64_t> num_begun{0};
    std::vector<std::thread> helpers;
    for (int64_t helper = 0; helper < num_helpers; ++helper) {
      helpers.emplace_back([&num_begun, body] {
        num_begun.fetch_add(1, std::memory_order_relaxed);
        body();
      });
    }
    // Else the caller would do all of a short loop alone.
    while (num_begun.load(std::memory_order_relaxed) < num_helpers) std::this_thread::yield();
    body();
    for (std::thread& helper : helpers) helper.join();
#else
    for (int64_t helper = 0; helper < num_helpers; ++helper) {
      auto copy = body;
      pool_.Schedule(std::move(copy));
    }
    body();
#endif
    while (state->done.load(std::memory_order_acquire) < n) std::this_thread::yield();
  }

 private:
#if defined(__SANITIZE_THREAD__)
  static std::atomic<int64_t>& Calls() {
    static std::atomic<int64_t> calls{0};
    return calls;
  }
#endif
  xla::ffi::ThreadPool pool_;
  int64_t max_threads_;
};

}  // namespace cosurfgs
