// The shape of a block that blends a tile, and how its threads put numbers together: within a warp
// by exchanging registers, then over the warps through shared memory, in a fixed order.
#pragma once

#include <cstdint>

#include "raster/raster.h"
#include "common/scalar.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {

constexpr int kWarp = 32, kPatch = 8,
              kPixels = 2;  // kPatch: pixels, square, of a warp; kPixels: of a thread
constexpr int kPatches = kTile / kPatch, kTileWarps = kPatches * kPatches,
              kTileThreads = kTileWarps * kWarp;
static_assert(kWarp * kPixels == kPatch * kPatch && kTile == 2 * kPatch,
              "two pixels a thread, two patches a side");

// How numbers of a row are put together.
struct Sum {
  COSURFGS_FN static float Combine(int, float a, float b) { return a + b; }
};
struct SumOfContributions {  // the second is a maximum
  COSURFGS_FN static float Combine(int k, float a, float b) { return k == 1 ? Max(a, b) : a + b; }
};

// Puts together kCount numbers of each of 32 lanes: afterwards values[0] of a lane is number
// LaneNumber<kCount>(lane) over all lanes. At every step a lane keeps half of the numbers that it
// is in charge of and sends the others away; where their count is odd, both lanes keep the middle
// one. 23 exchanges for 22 numbers, where a sum for each would take 110. exchange(width, i, j,
// combine): lanes whose bit `width` is 0 keep values[i], the others values[j], and send the other
// one to lane ^ width; values[i] becomes combine(lane, kept, received).
template <int kCount, int kWidth = kWarp / 2>
COSURFGS_FN int LaneNumber(int lane, int slot = 0) {
  constexpr int kKept = (kCount + 1) / 2;
  if constexpr (kWidth > 1) slot = LaneNumber<kKept, kWidth / 2>(lane, slot);
  return lane & kWidth && slot + kKept < kCount ? slot + kKept : slot;
}
// The same of a slot while numbers are still being put together: its number among those of the
// steps before and this one.
template <int kTotal, int kWidth>
COSURFGS_FN int SlotNumber(int lane, int slot) {
  if constexpr (kWidth >= kWarp) {
    return slot;
  } else {
    constexpr int kShare = kWarp / kWidth, kBefore = (kTotal + kShare / 2 - 1) / (kShare / 2),
                  kKept = (kBefore + 1) / 2;
    return SlotNumber<kTotal, 2 * kWidth>(
        lane, lane & kWidth && slot + kKept < kBefore ? slot + kKept : slot);
  }
}
template <int kTotal, class Op, int kCount = kTotal, int kWidth = kWarp / 2, class Warp>
COSURFGS_BLOCK_FN void CombineLanes(Warp& warp) {
  constexpr int kKept = (kCount + 1) / 2;
  COSURFGS_UNROLL
  for (int i = 0; i < kKept; ++i) {
    warp.Exchange(kWidth, i, i + kKept < kCount ? i + kKept : i,
                  [=](int lane, float kept, float received) {
                    return Op::Combine(SlotNumber<kTotal, kWidth>(lane, i), kept, received);
                  });
  }
  if constexpr (kWidth > 1) CombineLanes<kTotal, Op, kKept, kWidth / 2>(warp);
}

// What the warps of a block have gathered for the surfels of a batch.
template <int kBatch, int kUsed>
struct Slab {
  static_assert(kBatch % kWarp == 0 && kUsed <= kWarp, "bits of words, and a lane for each number");
  float values[kTileWarps][kBatch][kUsed];
  uint32_t is_hit[kTileWarps][kBatch / kWarp];  // a bit for each surfel
};

// Calls write(surfel of the batch, number, value) for this thread's part of the batch: always the
// same number, of every kTeams-th surfel. Unrolled, so that places in the slab and bits are
// constants.
template <class Op, int kBatch, int kUsed, class Write>
COSURFGS_BLOCK_FN void ReadSlab(const Slab<kBatch, kUsed>& slab, int size, int thread,
                                Write write) {
  constexpr int kTeam = kUsed <= kContributions ? kContributions : kWarp,
                kTeams = kTileThreads / kTeam;
  static_assert(kWarp % kTeams == 0, "the surfels of a turn have bits of one word");
  const int k = thread % kTeam, first = thread / kTeam;
  if (k >= kUsed) return;
  COSURFGS_UNROLL
  for (int turn = 0; turn < kBatch / kTeams; ++turn) {
    const int i = turn * kTeams + first, word = turn * kTeams / kWarp, bit = turn * kTeams % kWarp;
    if (i >= size) return;
    float value = 0.0f;
    bool is_any = false;
    COSURFGS_UNROLL
    for (int warp = 0; warp < kTileWarps; ++warp) {
      const bool is_hit = slab.is_hit[warp][word] >> first & 1u << bit;
      if (is_hit) value = Op::Combine(k, value, slab.values[warp][i][k]);
      is_any = is_any || is_hit;
    }
    if (is_any) write(i, k, value);
  }
}

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
