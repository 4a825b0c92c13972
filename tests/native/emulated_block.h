// Blocks and warps of a GPU as loops on the host: what `gpu/*.h` asks of a block (gpu/cuda_device.h
// says what that is).
//
// Threads of a phase, and blocks, run forwards or backwards: results must not depend on it.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "gpu/blend.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {
namespace {

bool is_reversed = false;

// What the warps did, for who counts it: batches, ballots over surfels of which some can be
// reached, surfels visited, visits in which a pixel was hit, and (of Rows) those in which a first
// and a second pixel of threads were hit.
struct Work {
  int64_t batches, ballots, visits, hits, whole_hits;
} work;

template <class Function>
void InOrder(int64_t n, Function fn) {
  for (int64_t i = 0; i < n; ++i) fn(is_reversed ? n - 1 - i : i);
}

template <int kCount>
struct HostWarp {
  float values[kWarp][kCount];
  HostWarp() { std::memset(values, 0xa5, sizeof(values)); }
  template <class Combine>
  void Exchange(int width, int i, int j, Combine combine) {
    float kept[kWarp], sent[kWarp];
    for (int lane = 0; lane < kWarp; ++lane) {
      const bool is_upper = lane & width;
      kept[lane] = values[lane][is_upper ? j : i];
      sent[lane] = values[lane][is_upper ? i : j];
    }
    for (int lane = 0; lane < kWarp; ++lane)
      values[lane][i] = combine(lane, kept[lane], sent[lane ^ width]);
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

  template <int kBatch, class Reach, class Meet, class Fill>
  void Visit(const uint8_t (&patches)[kBatch], Order order, Reach reach, Meet meet, Fill fill) {
    work.batches += kTileWarps;
    InOrder(kTileWarps, [&](int64_t w) {
      for (int chunk = 0; chunk < kBatch; chunk += kWarp) {
        ForMarked(Marked(patches, chunk, order, reach, w), chunk, order, [&](int i) {
          bool is_any = false;
          InOrder(kWarp, [&](int64_t lane) {
            Hits found;
            std::memset(static_cast<void*>(&found), 0xa5, sizeof(found));
            const bool is_hit = meet(states_[w * kWarp + lane], i, found);
            if (is_hit) fill(states_[w * kWarp + lane], i, found);
            is_any |= is_hit;
          });
          work.hits += is_any;
        });
      }
    });
  }

  template <class Op, int kBatch, int kUsed, class Reach, class Meet, class Fill>
  void Rows(const uint8_t (&patches)[kBatch], Slab<kBatch, kUsed>& slab, Order order, Reach reach,
            Meet meet, Fill fill) {
    work.batches += kTileWarps;
    InOrder(kTileWarps, [&](int64_t w) {
      for (int chunk = 0; chunk < kBatch; chunk += kWarp) {
        uint32_t is_hit = 0;
        ForMarked(Marked(patches, chunk, order, reach, w), chunk, order, [&](int i) {
          Hits found[kWarp];
          std::memset(static_cast<void*>(found), 0xa5, sizeof(found));
          bool is_any[kPixels] = {};
          InOrder(kWarp, [&](int64_t lane) {
            meet(states_[w * kWarp + lane], i, found[lane]);
            for (int p = 0; p < kPixels; ++p) is_any[p] |= found[lane].of[p].is_hit;
          });
          work.hits += is_any[0] || is_any[1];
          work.whole_hits += is_any[0] && is_any[1];
          if (!is_any[0] && !is_any[1]) return;
          HostWarp<kUsed> warp;
          InOrder(kWarp, [&](int64_t lane) {
            fill(states_[w * kWarp + lane], i, found[lane], is_any, warp.values[lane]);
          });
          CombineLanes<kUsed, Op>(warp);
          InOrder(kWarp, [&](int64_t lane) {
            slab.values[w][i][LaneNumber<kUsed>(int(lane))] = warp.values[lane][0];
          });
          is_hit |= 1u << (i - chunk);
        });
        slab.is_hit[w][chunk / kWarp] = is_hit;
      }
    });
  }

 private:
  // The ballot of a warp: every lane looks at one surfel of the chunk. The first to be visited has
  // the highest bit.
  template <int kBatch, class Reach>
  uint32_t Marked(const uint8_t (&patches)[kBatch], int chunk, Order order, Reach reach,
                  int64_t w) const {
    int end = 0;
    for (int lane = 0; lane < kWarp; ++lane)
      end = std::max(end, int(reach(states_[w * kWarp + lane])));
    uint32_t marked = 0;
    work.ballots += end > chunk;
    InOrder(kWarp, [&](int64_t lane) {
      const int i = chunk + (order == Order::kForward ? kWarp - 1 - int(lane) : int(lane));
      if (i < end && (patches[i] >> w & 1)) marked |= 1u << lane;
    });
    return marked;
  }
  template <class Function>
  static void ForMarked(uint32_t marked, int chunk, Order order, Function fn) {
    while (marked) {
      const int top = kWarp - 1 - __builtin_clz(marked);
      marked ^= 1u << top;
      ++work.visits;
      fn(chunk + (order == Order::kForward ? kWarp - 1 - top : top));
    }
  }

  std::vector<typename Body::State> states_;
  std::unique_ptr<typename Body::Shared> shared_;
};

}  // namespace
}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
