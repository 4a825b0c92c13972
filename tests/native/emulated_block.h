// Blocks and warps of a GPU as loops on the host: what `gpu_*.h` asks of a block (cuda_device.h says what that is).
//
// Threads of a phase, and blocks, run forwards or backwards: results must not depend on it.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "gpu_blend.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {
namespace {

bool is_reversed = false;

template <class Function>
void InOrder(int64_t n, Function fn) {
  for (int64_t i = 0; i < n; ++i) fn(is_reversed ? n - 1 - i : i);
}

template <int kSize>
struct HostWarp {
  float values[kWarp][kSize];
  template <class Send, class Receive>
  void Exchange(int width, Send send, Receive receive) {
    float sent[kWarp];
    for (int lane = 0; lane < kWarp; ++lane) sent[lane] = send(lane, values[lane]);
    for (int lane = 0; lane < kWarp; ++lane) receive(lane, values[lane], sent[lane ^ width]);
  }
};

template <class Body>
class HostBlock {
 public:
  HostBlock() : states_(Body::kThreads), shared_(new typename Body::Shared) {
    std::memset(static_cast<void*>(shared_.get()), 0xa5, sizeof(typename Body::Shared));
  }
  typename Body::Shared& shared() { return *shared_; }

  template <class Function>
  void Each(Function fn) {
    InOrder(Body::kThreads, [&](int64_t thread) { fn(int(thread), states_[thread]); });
  }

  template <class Predicate>
  bool None(Predicate is_set) {
    for (const auto& state : states_) {
      if (is_set(state)) return false;
    }
    return true;
  }

  template <int kSize, class Op, int kBatch, int kUsed, class Function>
  void Rows(int count, Slab<kBatch, kUsed>& slab, Function fn) {
    InOrder(kTileWarps, [&](int64_t w) {
      for (int i = 0; i < count; ++i) {
        HostWarp<kSize> warp{};
        bool is_hit = false;
        InOrder(kWarp, [&](int64_t lane) { is_hit |= fn(states_[w * kWarp + lane], i, warp.values[lane]); });
        slab.is_hit[w][i] = is_hit;
        if (!is_hit) continue;
        CombineLanes<kSize, Op>(warp);
        for (int lane = 0; lane < kUsed; ++lane) slab.values[w][i][lane] = warp.values[lane][0];
      }
    });
  }

 private:
  std::vector<typename Body::State> states_;
  std::unique_ptr<typename Body::Shared> shared_;
};

}  // namespace
}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
