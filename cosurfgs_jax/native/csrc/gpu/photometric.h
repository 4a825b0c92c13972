// The photometric losses of one view with their derivatives, as bodies for a GPU (gpu/cuda_device.h
// says how they run). The formulas are those of losses/photometric_kernels.cc;
// losses/photometric.py defines them.
//
// The map of SSIM needs filtered images, and its gradient filters what comes from the map once
// more: two passes over tiles, with the map's derivatives in device memory between them. One pass
// would filter a border of 10 pixels around each tile again, 40 % more multiply-adds in a call that
// is bound by them, to save 72 of 124 bytes a pixel.
//
// A tile is wide and low. Each thread filters one column of one channel vertically, straight from
// device memory (18 rows for 8 sums, so that a row is loaded 2.25 times, mostly from the cache);
// then a run of 8 pixels of one row horizontally, from shared memory. Rows of shared memory have an
// odd length, and columns of a channel 11 more than a multiple of 32: no bank conflicts.
//
// Sums are made per tile, in one order, and added up in double precision by one block each: the
// same bits every time.
#pragma once

#include <cstdint>

#include "common/floats.h"
#include "common/scalar.h"
#include "losses/ssim_window.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {

constexpr int kSsimTileWidth = 64, kSsimTileHeight = 8;
constexpr int kSsimRun = 8;  // pixels that a thread filters at once, in either direction
constexpr int kSsimRuns = kSsimTileWidth / kSsimRun;
constexpr int kSsimWindow = kSsimRun + 2 * kSsimRadius;  // pixels that it reads for them
constexpr int kSsimColumns = kSsimTileWidth + 2 * kSsimRadius;
constexpr int kSsimChannelPitch = kSsimColumns + 1;
constexpr int kSsimRowPitch = 3 * kSsimChannelPitch;
constexpr int kSsimThreads = 256;
static_assert(kSsimTileHeight == kSsimRun && 3 * kSsimColumns <= kSsimThreads &&
                  3 * kSsimRuns * kSsimTileHeight <= kSsimThreads,
              "each phase gives a thread one thing to do");
static_assert(kSsimChannelPitch % 32 == 11 && kSsimRowPitch % 2 == 1, "no bank conflicts");

constexpr int kSsimMoments = 4;   // F(a), F(b), F(a a + b b), F(a b)
constexpr int kSsimPartials = 3;  // derivatives of the map by the first, third and fourth
constexpr int kSsimBlock =
    kSsimPartials *
    kSsimRun;  // floats that lie together, one partial after the other: what a thread makes

// Sums over the image: those of the first pass, then those of the second.
enum PhotometricSum {
  kSumWeight,
  kSumCounted,  // pixels of weight above one half, which count for PSNR
  kSumDissimilarity,
  kSumDifference,
  kSumSquared,
  kSumLight,
  kSumByTransform,
  kNumSums = kSumByTransform + 12,
};
constexpr int kFirstSums = kSumDifference, kSecondSums = kNumSums - kFirstSums;

// Places in arrays have 32 bits: address arithmetic is what there is most of besides multiply-adds.
constexpr int64_t kMaxLossPixels = int64_t(1) << 27;

struct PhotometricArgs {
  int height, width, channels;
  const float *render, *alpha,
      *transform;  // f32[height, width, 3], canonical; f32[height, width]; f32[3, 4]
  const uint8_t*
      photo;  // u8[height, width, channels]; a fourth channel is 255 times the pixel's weight
  const bool* mask;  // bool[height, width], false = weight 0; or null
  float color_weight, ssim_weight, light_weight;
  float *losses, *grad_render, *grad_alpha, *grad_transform;
  // Scratch.
  int tiles_x, num_tiles, pitch;
  float*
      partials;  // f32[3, height, pitch]; a row holds [width / kSsimRun, kSsimPartials, kSsimRun]
  double* tile_sums;  // f64[kNumSums, num_tiles]
  double* sums;       // f64[kNumSums]

  COSURFGS_FN bool Has(int x, int y) const {
    return unsigned(x) < unsigned(width) && unsigned(y) < unsigned(height);
  }
  COSURFGS_FN float Weight(int pixel) const {
    const float weight = channels == 4 ? kPhotoUnit * float(photo[4 * pixel + 3]) : 1.0f;
    return mask && !mask[pixel] ? 0.0f : weight;
  }
  // Without weights a photograph has three channels.
  template <bool kIsWeighted>
  COSURFGS_FN float Target(int pixel, int channel) const {
    return kPhotoUnit * float(photo[(kIsWeighted ? channels : 3) * pixel + channel]);
  }
  // Where the first partial of a value is; the next ones are kSsimRun floats further each.
  COSURFGS_FN int PartialsPlace(int channel, int x, int y) const {
    return (channel * height + y) * pitch + x / kSsimRun * kSsimBlock + x % kSsimRun;
  }
};

struct SsimTile {
  int x, y;  // of its first pixel
  COSURFGS_FN SsimTile(const PhotometricArgs& args, int64_t index) {
    x = int(index) % args.tiles_x * kSsimTileWidth;
    y = int(index) / args.tiles_x * kSsimTileHeight;
  }
  // Whether its columns and rows with their borders lie in the image: then nobody needs to ask for
  // each pixel.
  COSURFGS_FN bool IsInside(const PhotometricArgs& args) const {
    return x >= kSsimRadius && y >= kSsimRadius && x + kSsimTileWidth + kSsimRadius <= args.width &&
           y + kSsimTileHeight + kSsimRadius <= args.height;
  }
};

// What each thread filters horizontally.
struct SsimRun {
  int row, x, channel;  // in the tile
  COSURFGS_FN explicit SsimRun(int thread) {
    row = thread % kSsimTileHeight;
    x = thread / kSsimTileHeight % kSsimRuns * kSsimRun;
    channel = thread / (kSsimTileHeight * kSsimRuns);  // 3 and more: none
  }
};

// What the value at place `r` of a window adds to the kSsimRun filtered ones. `r` is known when
// loops are unrolled.
template <int kNum>
COSURFGS_FN void AddToFiltered(int r, const float (&values)[kNum],
                               float (&filtered)[kNum][kSsimRun]) {
  COSURFGS_UNROLL
  for (int k = 0; k < kSsimRun; ++k) {
    if (r < k || r - k >= kSsimTaps) continue;
    COSURFGS_UNROLL
    for (int m = 0; m < kNum; ++m) filtered[m][k] += SsimWeight(r - k) * values[m];
  }
}

template <int kNum>
struct SsimShared {
  union {
    float filtered[kNum][kSsimTileHeight][kSsimRowPitch];  // vertically
    float lanes[kSecondSums][kSsimThreads + 16];
  };
  float parts[kSecondSums][16];
};

// A row of filtered columns, filtered horizontally.
template <int kNum>
COSURFGS_FN void FilterRun(const SsimShared<kNum>& shared, const SsimRun& run,
                           float (&filtered)[kNum][kSsimRun]) {
  COSURFGS_UNROLL
  for (int r = 0; r < kSsimWindow; ++r) {
    float values[kNum];
    COSURFGS_UNROLL
    for (int m = 0; m < kNum; ++m)
      values[m] = shared.filtered[m][run.row][run.channel * kSsimChannelPitch + run.x + r];
    AddToFiltered(r, values, filtered);
  }
}

// out[k stride] = state.sums[k] over the threads of a block.
template <int kNum, class Block>
COSURFGS_BLOCK_FN void AddUpThreads(Block& block, double* out, int64_t stride) {
  auto& shared = block.shared();
  block.Each([&](int thread, auto& state) {
    COSURFGS_UNROLL
    for (int k = 0; k < kNum; ++k) shared.lanes[k][thread] = state.sums[k];
  });
  block.Each([&](int thread, auto&) {
    const int k = thread / 16, part = thread % 16;
    if (k >= kNum) return;
    float sum = 0;
    COSURFGS_UNROLL
    for (int i = part; i < kSsimThreads; i += 16) sum += shared.lanes[k][i];
    shared.parts[k][part] = sum;
  });
  block.Each([&](int thread, auto&) {
    if (thread >= kNum) return;
    double sum = 0;
    for (int part = 0; part < 16; ++part) sum += shared.parts[thread][part];
    out[thread * stride] = sum;
  });
}

// First pass: the map of SSIM, its derivatives, and what of the image counts. kIsWeighted: not
// every pixel counts fully.
template <bool kIsWeighted>
struct SsimMapBlock {
  using Args = PhotometricArgs;
  using Shared = SsimShared<kSsimMoments>;
  static constexpr int kThreads = kSsimThreads, kMinBlocks = 4;
  struct State {
    float sums[kFirstSums];
  };

  // Column `thread / 3` of the tile and its border, channel `thread % 3`, as they lie in the image.
  // Zero outside of it.
  template <bool kIsInside>
  COSURFGS_FN static void FilterColumn(const Args& args, const SsimTile& tile, int thread,
                                       Shared& shared, State& state) {
    const int column = thread / 3, channel = thread % 3, x = tile.x + column - kSsimRadius;
    const bool is_counted =
        channel == 0 && column >= kSsimRadius && column < kSsimRadius + kSsimTileWidth;
    float filtered[kSsimMoments][kSsimRun] = {};
    COSURFGS_UNROLL
    for (int r = 0; r < kSsimWindow; ++r) {
      const int y = tile.y + r - kSsimRadius;
      float a = 0, b = 0, weight = 0;
      if (kIsInside || args.Has(x, y)) {
        const int pixel = y * args.width + x;
        weight = kIsWeighted ? args.Weight(pixel) : 1.0f;
        a = args.render[3 * pixel + channel];
        b = args.template Target<kIsWeighted>(pixel, channel);
        if (kIsWeighted) a = weight * a + (1.0f - weight) * b;
      }
      if (r >= kSsimRadius && r < kSsimRadius + kSsimRun && is_counted) {
        state.sums[kSumWeight] += weight;
        state.sums[kSumCounted] += weight > 0.5f ? 1.0f : 0.0f;
      }
      const float values[kSsimMoments] = {a, b, a * a + b * b, a * b};
      AddToFiltered(r, values, filtered);
    }
    COSURFGS_UNROLL
    for (int k = 0; k < kSsimRun; ++k) {
      COSURFGS_UNROLL
      for (int m = 0; m < kSsimMoments; ++m)
        shared.filtered[m][k][channel * kSsimChannelPitch + column] = filtered[m][k];
    }
  }

  // The derivatives of the map by the filtered moments; returns the map.
  COSURFGS_FN static float Differentiate(float mean_a, float mean_b, float square, float product,
                                         float* partials) {
    const float mean_product = mean_a * mean_b, mean_square = mean_a * mean_a + mean_b * mean_b;
    const float luminance = 2.0f * mean_product + kSsimC1, luminance_norm = mean_square + kSsimC1;
    // Rounding can take a variance below zero, which matters when values are far above 1.
    const float structure = 2.0f * (product - mean_product) + kSsimC2;
    const float structure_norm = Max(square - mean_square, 0.0f) + kSsimC2;
    const float inverse = Reciprocal(luminance_norm * structure_norm);
    const float map = luminance * structure * inverse;
    partials[0] = 2.0f * (inverse * mean_b * (structure - luminance) -
                          map * inverse * mean_a * (structure_norm - luminance_norm));
    partials[1] = -map * inverse * luminance_norm;
    partials[2] = 2.0f * luminance * inverse;
    return map;
  }

  COSURFGS_FN static void MapRun(const Args& args, const SsimTile& tile, const SsimRun& run,
                                 const Shared& shared, State& state) {
    if (run.channel >= 3 || !args.Has(tile.x + run.x, tile.y + run.row)) return;
    float moments[kSsimMoments][kSsimRun] = {};
    FilterRun(shared, run, moments);
    float* out = args.partials + args.PartialsPlace(run.channel, tile.x + run.x, tile.y + run.row);
    COSURFGS_UNROLL
    for (int half = 0; half < kSsimRun; half += 4) {
      Floats<4> partials[kSsimPartials];
      COSURFGS_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int k = half + i;
        float grad_moment[kSsimPartials];
        const float map =
            Differentiate(moments[0][k], moments[1][k], moments[2][k], moments[3][k], grad_moment);
        if (tile.x + run.x + k < args.width) state.sums[kSumDissimilarity] += 1.0f - map;
        COSURFGS_UNROLL
        for (int p = 0; p < kSsimPartials; ++p) partials[p][i] = grad_moment[p];
      }
      // Past the image's last column there is room in a row, which nobody reads.
      COSURFGS_UNROLL
      for (int p = 0; p < kSsimPartials; ++p) partials[p].Store(out + p * kSsimRun + half);
    }
  }

  template <class Block>
  COSURFGS_BLOCK_FN static void Run(Block& block, const Args& args, int64_t index) {
    const SsimTile tile(args, index);
    Shared& shared = block.shared();
    block.Each([&](int thread, State& state) {
      for (int k = 0; k < kFirstSums; ++k) state.sums[k] = 0;
      if (thread >= 3 * kSsimColumns) return;
      if (tile.IsInside(args)) {
        FilterColumn<true>(args, tile, thread, shared, state);
      } else {
        FilterColumn<false>(args, tile, thread, shared, state);
      }
    });
    block.Each(
        [&](int thread, State& state) { MapRun(args, tile, SsimRun(thread), shared, state); });
    AddUpThreads<kFirstSums>(block, args.tile_sums + index, args.num_tiles);
  }
};

// Second pass: the map's derivatives, filtered, give the derivative by the render; and what is done
// pixel by pixel.
template <bool kIsWeighted>
struct PhotometricGradientBlock {
  using Args = PhotometricArgs;
  using Shared = SsimShared<kSsimPartials>;
  static constexpr int kThreads = kSsimThreads, kMinBlocks = 4;
  struct State {
    float sums[kSecondSums];
    float filtered[kSsimPartials][kSsimRun];
  };

  // Column `thread % kSsimColumns` of channel `thread / kSsimColumns`. Outside of the image there
  // is no map.
  template <bool kIsInside>
  COSURFGS_FN static void FilterColumn(const Args& args, const SsimTile& tile, int thread,
                                       Shared& shared) {
    const int column = thread % kSsimColumns, channel = thread / kSsimColumns,
              x = tile.x + column - kSsimRadius;
    const int first = args.PartialsPlace(channel, x, tile.y - kSsimRadius);
    float filtered[kSsimPartials][kSsimRun] = {};
    COSURFGS_UNROLL
    for (int r = 0; r < kSsimWindow; ++r) {
      float values[kSsimPartials] = {};
      if (kIsInside || args.Has(x, tile.y + r - kSsimRadius)) {
        const float* partials = args.partials + (first + r * args.pitch);
        COSURFGS_UNROLL
        for (int p = 0; p < kSsimPartials; ++p) values[p] = partials[p * kSsimRun];
      }
      AddToFiltered(r, values, filtered);
    }
    COSURFGS_UNROLL
    for (int k = 0; k < kSsimRun; ++k) {
      COSURFGS_UNROLL
      for (int p = 0; p < kSsimPartials; ++p)
        shared.filtered[p][k][channel * kSsimChannelPitch + column] = filtered[p][k];
    }
  }

  // A pixel, of which the shared memory holds the filtered derivatives at (x, row) of the tile.
  COSURFGS_FN static void FinishPixel(const Args& args, int pixel, int x, int row,
                                      const Shared& shared, float* sums) {
    const float weight = kIsWeighted ? args.Weight(pixel) : 1.0f;
    const float per_pixel = 1.0f / Max(float(args.sums[kSumWeight]), 1.0f),
                per_value = per_pixel * (1.0f / 3);
    const float step = args.color_weight * per_value * weight;
    const bool counts = weight > 0.5f;
    float color[3], target[3], grad_color[3];
    COSURFGS_UNROLL
    for (int k = 0; k < 3; ++k) {
      color[k] = args.render[3 * pixel + k];
      target[k] = args.template Target<kIsWeighted>(pixel, k);
      const float compared =
          kIsWeighted ? weight * color[k] + (1.0f - weight) * target[k] : color[k];
      const int column = k * kSsimChannelPitch + x;
      const float grad = shared.filtered[0][row][column] +
                         2.0f * compared * shared.filtered[1][row][column] +
                         target[k] * shared.filtered[2][row][column];
      grad_color[k] = -args.ssim_weight * per_value * weight * grad;
    }
    COSURFGS_UNROLL
    for (int k = 0; k < 3; ++k) {
      const float* m = args.transform + 4 * k;
      const float exposed = m[0] * color[0] + m[1] * color[1] + m[2] * color[2] + m[3];
      const float difference = exposed - target[k],
                  clipped = Min(Max(exposed, 0.0f), 1.0f) - target[k];
      const float grad = difference > 0 ? step : difference < 0 ? -step : 0.0f;
      sums[kSumDifference - kFirstSums] += weight * fabsf(difference);
      sums[kSumSquared - kFirstSums] += counts ? clipped * clipped : 0.0f;
      float* grad_transform = sums + kSumByTransform - kFirstSums + 4 * k;
      COSURFGS_UNROLL
      for (int j = 0; j < 3; ++j) {
        grad_color[j] += m[j] * grad;
        grad_transform[j] += grad * color[j];
      }
      grad_transform[3] += grad;
    }
    const float light = 1.0f - args.alpha[pixel];
    sums[kSumLight - kFirstSums] += weight * light * light;
    COSURFGS_UNROLL
    for (int k = 0; k < 3; ++k) args.grad_render[3 * pixel + k] = grad_color[k];
    args.grad_alpha[pixel] = -2.0f * args.light_weight * per_pixel * weight * light;
  }

  template <class Block>
  COSURFGS_BLOCK_FN static void Run(Block& block, const Args& args, int64_t index) {
    const SsimTile tile(args, index);
    Shared& shared = block.shared();
    block.Each([&](int thread, State&) {
      if (thread >= 3 * kSsimColumns) return;
      if (tile.IsInside(args)) {
        FilterColumn<true>(args, tile, thread, shared);
      } else {
        FilterColumn<false>(args, tile, thread, shared);
      }
    });
    block.Each([&](int thread, State& state) {
      COSURFGS_UNROLL
      for (int p = 0; p < kSsimPartials; ++p) {
        COSURFGS_UNROLL
        for (int k = 0; k < kSsimRun; ++k) state.filtered[p][k] = 0;
      }
      if (SsimRun(thread).channel < 3) FilterRun(shared, SsimRun(thread), state.filtered);
    });
    // A pixel needs its three channels, which three threads have.
    block.Each([&](int thread, State& state) {
      const SsimRun run(thread);
      if (run.channel >= 3) return;
      COSURFGS_UNROLL
      for (int p = 0; p < kSsimPartials; ++p) {
        float* row = shared.filtered[p][run.row] + run.channel * kSsimChannelPitch + run.x;
        COSURFGS_UNROLL
        for (int k = 0; k < kSsimRun; ++k) row[k] = state.filtered[p][k];
      }
    });
    block.Each([&](int thread, State& state) {
      COSURFGS_UNROLL
      for (int k = 0; k < kSecondSums; ++k) state.sums[k] = 0;
      const int x = thread % kSsimTileWidth;
      for (int row = thread / kSsimTileWidth; row < kSsimTileHeight;
           row += kSsimThreads / kSsimTileWidth) {
        if (!args.Has(tile.x + x, tile.y + row)) continue;
        FinishPixel(args, (tile.y + row) * args.width + tile.x + x, x, row, shared, state.sums);
      }
    });
    AddUpThreads<kSecondSums>(block, args.tile_sums + kFirstSums * int64_t(args.num_tiles) + index,
                              args.num_tiles);
  }
};

struct SumRowsArgs {
  const double* rows;  // [num_rows, count]
  int64_t count;
  double* sums;  // [num_rows]
};

// A block adds up a row, in one order whatever the machine.
struct SumRowsBlock {
  using Args = SumRowsArgs;
  static constexpr int kThreads = 1024, kParts = 32;
  struct State {};
  struct Shared {
    double sums[kThreads];
    double parts[kParts];
  };
  template <class Block>
  COSURFGS_BLOCK_FN static void Run(Block& block, const Args& args, int64_t row) {
    Shared& shared = block.shared();
    block.Each([&](int thread, State&) {
      double sum = 0;
      for (int64_t i = thread; i < args.count; i += kThreads)
        sum += args.rows[row * args.count + i];
      shared.sums[thread] = sum;
    });
    block.Each([&](int thread, State&) {
      if (thread >= kParts) return;
      double sum = 0;
      for (int i = thread; i < kThreads; i += kParts) sum += shared.sums[i];
      shared.parts[thread] = sum;
    });
    block.Each([&](int thread, State&) {
      if (thread > 0) return;
      double sum = 0;
      for (int i = 0; i < kParts; ++i) sum += shared.parts[i];
      args.sums[row] = sum;
    });
  }
};

// The losses (i = 12) and a derivative by the transform (i < 12).
struct WritePhotometricLosses {
  using Args = PhotometricArgs;
  COSURFGS_FN static void Run(const Args& args, int64_t i) {
    const double* sums = args.sums;
    if (i < 12) {
      args.grad_transform[i] = float(sums[kSumByTransform + i]);
      return;
    }
    const double weight = sums[kSumWeight], per_pixel = 1 / (weight > 1 ? weight : 1),
                 per_value = per_pixel / 3;
    // Where no pixel counts, the rounding of SSIM must not be all that is left.
    const double dissimilarity = weight > 0 ? sums[kSumDissimilarity] : 0;
    args.losses[0] = float(args.color_weight * per_value * sums[kSumDifference] +
                           args.ssim_weight * per_value * dissimilarity +
                           args.light_weight * per_pixel * sums[kSumLight]);
    args.losses[1] = float(-10 * log10(sums[kSumSquared] / (3 * sums[kSumCounted])));
  }
};

// The order of work. Every launch follows from the shapes.
template <class Device, bool kIsWeighted>
void RunPhotometric(Device& device, const PhotometricArgs& args) {
  const auto add_up = [&](int first, int num) {
    const int64_t count = args.num_tiles;
    device.template Blocks<SumRowsBlock>(
        num, {args.tile_sums + first * count, count, args.sums + first});
  };
  device.template Blocks<SsimMapBlock<kIsWeighted>>(args.num_tiles, args);
  add_up(0, kFirstSums);
  device.template Blocks<PhotometricGradientBlock<kIsWeighted>>(args.num_tiles, args);
  add_up(kFirstSums, kSecondSums);
  device.template For<WritePhotometricLosses>(13, args);
}

template <class Device>
void RunPhotometric(Device& device, PhotometricArgs args) {
  const auto divide_up = [](int n, int unit) { return (n + unit - 1) / unit; };
  args.tiles_x = divide_up(args.width, kSsimTileWidth);
  args.num_tiles = args.tiles_x * divide_up(args.height, kSsimTileHeight);
  args.pitch = divide_up(args.width, kSsimRun) * kSsimBlock;
  args.partials =
      static_cast<float*>(device.Allocate(size_t(3) * args.height * args.pitch * sizeof(float)));
  args.tile_sums =
      static_cast<double*>(device.Allocate(size_t(kNumSums) * args.num_tiles * sizeof(double)));
  args.sums = static_cast<double*>(device.Allocate(kNumSums * sizeof(double)));
  if (args.mask || args.channels == 4) {
    RunPhotometric<Device, true>(device, args);
  } else {
    RunPhotometric<Device, false>(device, args);
  }
}

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
