// What GPU threads do to add up the rows that blocks have written for the pairs of a surfel:
// gradients, or contributions.
//
// Rows lie in the order of surfels by depth, those of a surfel one after the other, and are added
// up in place: its first row becomes its sum, so a surfel in one tile has it already. The order of
// additions is fixed, whichever block was first.
#pragma once

#include "gpu/binning.h"
#include "gpu/blend.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {

constexpr int kFewRows = 64;       // that one thread adds up
constexpr int kLargeBlocks = 512;  // for the surfels with more

// The next free place of a list that other threads append to.
COSURFGS_FN int32_t AtomicNext(int32_t* count) {
#if defined(__CUDA_ARCH__)
  return atomicAdd(count, 1);
#else
  return (*count)++;
#endif
}

struct AddRowsArgs {
  const int64_t* offsets;  // of the rows of surfels, by rank, and one more
  float* rows;
  int32_t* num_large;
  int32_t* large;  // ranks of surfels with more than kFewRows, in any order
};

// One thread per number of a surfel: neighbouring threads read neighbouring numbers of a row.
template <class Op, int kSize>
struct AddRows {
  using Args = AddRowsArgs;
  COSURFGS_FN static void Run(const Args& args, int64_t index) {
    const int64_t rank = index / kSize;
    const int number = int(index - rank * kSize);
    const int64_t begin = args.offsets[rank];
    const int count = int(args.offsets[rank + 1] - begin);
    if (count > kFewRows) {
      if (number == 0) args.large[AtomicNext(args.num_large)] = int32_t(rank);
      return;
    }
    if (count <= 1) return;
    float* first = args.rows + begin * kSize + number;
    float sum = *first;
    for (int i = 1; i < count; ++i) sum = Op::Combine(number, sum, first[i * kSize]);
    *first = sum;
  }
};

// A block per surfel with many, as large as there are: at 4K one that covers the image has 32,400
// rows.
template <class Op, int kSize>
struct AddLargeRows {
  using Args = AddRowsArgs;
  static constexpr int kThreads = 1024;
  static constexpr int kParts =
      kThreads / kSize < kFewRows ? kThreads / kSize : kFewRows;  // so that each has a row
  struct State {};
  struct Shared {
    float sums[kParts][kSize];
  };
  template <class Block>
  COSURFGS_BLOCK_FN static void Run(Block& block, const Args& args, int64_t index) {
    Shared& shared = block.shared();
    for (int64_t i = index; i < *args.num_large; i += kLargeBlocks) {
      const int64_t begin = args.offsets[args.large[i]];
      const int count = int(args.offsets[args.large[i] + 1] - begin);
      float* rows = args.rows + begin * kSize;
      block.Each([&](int thread, State&) {
        const int part = thread / kSize, number = thread % kSize;
        if (part >= kParts) return;
        float sum = rows[part * kSize + number];
        for (int row = part + kParts; row < count; row += kParts) {
          sum = Op::Combine(number, sum, rows[row * kSize + number]);
        }
        shared.sums[part][number] = sum;
      });
      block.Each([&](int thread, State&) {
        if (thread >= kSize) return;
        float sum = shared.sums[0][thread];
        for (int part = 1; part < kParts; ++part)
          sum = Op::Combine(thread, sum, shared.sums[part][thread]);
        rows[thread] = sum;
      });
    }
  }
};

struct AddBandArgs {
  const int64_t* offsets;
  const int32_t* order;
  const float* rows;
  float* sums;  // per surfel, by id
};

// The sums of a band of tile rows, added to those of the bands before.
template <int kSize>
struct AddBand {
  using Args = AddBandArgs;
  COSURFGS_FN static void Run(const Args& args, int64_t index) {
    const int64_t rank = index / kSize;
    const int number = int(index - rank * kSize);
    const int64_t begin = args.offsets[rank];
    if (args.offsets[rank + 1] > begin) {
      args.sums[int64_t(args.order[rank]) * kSize + number] += args.rows[begin * kSize + number];
    }
  }
};

struct TakeArgs {
  const uint32_t* keys;     // by id
  const int64_t* position;  // of a surfel's row, by id
  const float* rows;
  float* sums;  // by id
};

struct TakeContributions {
  using Args = TakeArgs;
  COSURFGS_FN static void Run(const Args& args, int64_t id) {
    static_assert(kContributions == kVector);
    float values[kVector] = {};
    if (args.keys[id] != kHiddenKey) LoadVector(args.rows + args.position[id] * kVector, values);
    StoreVector(values, args.sums + id * kVector);
  }
};

struct TakeRemoval {
  using Args = TakeArgs;
  COSURFGS_FN static void Run(const Args& args, int64_t id) {
    const bool is_seen = args.keys[id] != kHiddenKey;
    for (int k = 0; k < kRemoval; ++k) {
      args.sums[id * kRemoval + k] = is_seen ? args.rows[args.position[id] * kRemoval + k] : 0.0f;
    }
  }
};

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
