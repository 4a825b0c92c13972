// What one GPU block does for one tile: blending, and the way back. The same formulas as blend_kernels.cc for one pixel.
//
// A block has a thread per pixel of a tile; a warp has 8x4 of them, so that a small surfel concerns few warps. Records come
// through shared memory in batches. Sums over a tile's pixels are made per warp by exchanging registers, kept per warp and
// surfel of the batch in shared memory, and added over the warps when the batch is done: no two warps wait for each other
// within a batch, and the order of additions is fixed.
#pragma once

#include <string.h>

#include <type_traits>

#include "raster.h"
#include "scalar.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {

constexpr int kWarp = 32, kTileThreads = kTile * kTile, kTileWarps = kTileThreads / kWarp;

struct BlendArgs {
  const View* view;
  const Record* records;
  const int64_t* tile_begin;
  const int32_t* lists;
  int tiles_x, first_tile;
  const float* background;
  Image image;
  ImageGradient gradient;
  PairRows rows;  // contributions or gradients; rows.rows may be null
  float* sums;    // backward without rows: per surfel, added to in any order
};

struct PixelPosition {
  int x, y;
  bool is_inside;
  COSURFGS_FN PixelPosition(const BlendArgs& args, int tile, int thread) {
    const int warp = thread / kWarp, lane = thread % kWarp;
    x = tile % args.tiles_x * kTile + warp % 2 * 8 + lane % 8;
    y = tile / args.tiles_x * kTile + warp / 2 * 4 + lane / 8;
    is_inside = x < args.view->width && y < args.view->height;
  }
};

struct Hit {
  float dx, dy, u, v, inv_pz, alpha, unclamped, z;
  bool is_disc;
};

// Whether the surfel is hit at the pixel. Without kWithDepth z is only set where it may be too near.
template <bool kWithDepth>
COSURFGS_FN bool Intersect(const Record& r, int x, int y, float near, Hit& h) {
  if (x < r.box.x0 || x > r.box.x1 || y < r.box.y0 || y > r.box.y1) return false;
  const Projected<float>& s = r.s;
  h.dx = float(x) + 0.5f - s.center[0];
  h.dy = float(y) + 0.5f - s.center[1];
  const float px = h.dx * s.a[0] + h.dy * s.b[0];
  const float py = h.dx * s.a[1] + h.dy * s.b[1];
  const float pz = h.dx * s.a[2] + (h.dy * s.b[2] + s.c);
  h.inv_pz = Reciprocal(pz);
  h.u = px * h.inv_pz;
  h.v = py * h.inv_pz;
  const float sigma_disc = h.u * h.u + h.v * h.v;
  const float sigma_screen = (h.dx * h.dx + h.dy * h.dy) * kLowPass;
  h.is_disc = sigma_disc <= sigma_screen;  // false where the ray lies in the disc's plane: NaN or infinity
  const float sigma = h.is_disc ? sigma_disc : sigma_screen;
  if (!(sigma <= r.cutoff)) return false;
  h.unclamped = ExpMinusHalf(sigma) * s.opacity;
  h.alpha = Min(h.unclamped, kMaxAlpha);
  if (!(kMinAlpha <= h.alpha)) return false;
  if (kWithDepth || r.may_be_near) {
    h.z = h.is_disc ? h.u * s.m2[0] + (h.v * s.m2[1] + s.m2[2]) : s.m2[2];
    if (r.may_be_near && !(near <= h.z)) return false;
  }
  return true;
}

// Copies the records of a batch, and their ids, into shared memory; 16 bytes a thread and turn. By memcpy, as a compiler may
// take for granted that words are not the floats that are read afterwards.
template <int kBatch>
COSURFGS_FN void CopyBatch(const BlendArgs& args, int64_t first, int size, int thread, Record* records, int32_t* ids) {
  constexpr int kBytes = 16, kChunks = kRecordBytes / kBytes;
  struct alignas(kBytes) Chunk {
    char bytes[kBytes];
  } chunk;
  static_assert(kBatch <= kTileThreads, "a thread per id");
  if (thread < size) ids[thread] = args.lists[first + thread];
  for (int i = thread; i < size * kChunks; i += kTileThreads) {
    const int64_t offset = i % kChunks * kBytes;
    const char* source = reinterpret_cast<const char*>(args.records + args.lists[first + i / kChunks]) + offset;
    char* target = reinterpret_cast<char*>(records + i / kChunks) + offset;
    memcpy(&chunk, __builtin_assume_aligned(source, kBytes), kBytes);
    memcpy(__builtin_assume_aligned(target, kBytes), &chunk, kBytes);
  }
}

// How numbers of a row are put together.
struct Sum {
  COSURFGS_FN static float Combine(int, float a, float b) { return a + b; }
};
struct SumOfContributions {  // the second is a maximum
  COSURFGS_FN static float Combine(int k, float a, float b) { return k == 1 ? Max(a, b) : a + b; }
};

// Puts together kSize numbers (a power of two) of each of 32 lanes: afterwards values[0] of a lane is number (lane % kSize) over
// all lanes. Every step halves what a lane is in charge of: 31 exchanges for 32 numbers, where a sum for each would take 160.
// exchange(width, send, receive) calls receive(lane, values, send(lane ^ width, ...)) for every lane.
template <int kSize, class Op, int kWidth, class Warp>
COSURFGS_BLOCK_FN void HalveWidth(Warp& warp) {
  if constexpr (kWidth >= kSize) {
    warp.Exchange(
        kWidth, [](int, const float* values) { return values[0]; },
        [](int lane, float* values, float other) { values[0] = Op::Combine(lane % kSize, values[0], other); });
  } else {
    COSURFGS_UNROLL
    for (int i = 0; i < kWidth; ++i) {
      warp.Exchange(
          kWidth, [i](int lane, const float* values) { return lane & kWidth ? values[i] : values[i + kWidth]; },
          [i](int lane, float* values, float other) {
            const float mine = lane & kWidth ? values[i + kWidth] : values[i];
            // The number's index: the bits of the lane from kWidth up, and i below.
            values[i] = Op::Combine((lane % kSize & ~(kWidth - 1)) | i, mine, other);
          });
    }
  }
}
template <int kSize, class Op, int kWidth, int kEnd, class Warp>
COSURFGS_BLOCK_FN void Halve(Warp& warp) {
  if constexpr (kWidth >= kEnd) {
    HalveWidth<kSize, Op, kWidth>(warp);
    Halve<kSize, Op, kWidth / 2, kEnd>(warp);
  }
}
template <int kSize, class Op, class Warp>
COSURFGS_BLOCK_FN void CombineLanes(Warp& warp) {
  Halve<kSize, Op, kSize / 2, 1>(warp);
  Halve<kSize, Op, kWarp / 2, kSize>(warp);
}

// What the warps of a block have gathered for the surfels of a batch.
template <int kBatch, int kUsed>
struct Slab {
  float values[kTileWarps][kBatch][kUsed];
  bool is_hit[kTileWarps][kBatch];
};

// Calls write(surfel of the batch, number, value) for this thread's part of the batch.
template <class Op, int kBatch, int kUsed, class Write>
COSURFGS_BLOCK_FN void ReadSlab(const Slab<kBatch, kUsed>& slab, int size, int thread, Write write) {
  for (int index = thread; index < size * kUsed; index += kTileThreads) {
    const int i = index / kUsed, k = index % kUsed;
    float value = 0.0f;
    bool is_hit = false;
    for (int warp = 0; warp < kTileWarps; ++warp) {
      if (slab.is_hit[warp][i]) value = Op::Combine(k, value, slab.values[warp][i][k]);
      is_hit = is_hit || slab.is_hit[warp][i];
    }
    if (is_hit) write(i, k, value);
  }
}

// Forward. Rows of contributions that no pixel adds to are not written: they must be zero before.
template <int kMaps, bool kContributing>
struct BlendTileBlock {
  using Args = BlendArgs;
  static constexpr int kThreads = kTileThreads;
  static constexpr int kBatch = 64;
  struct State {
    int x, y;
    bool active;  // takes hits
    float transmittance, color[3], depth, median, normal[3], plane, distortion;
    int32_t last, median_index;
  };
  struct Empty {};
  struct Shared {
    Record records[kBatch];
    int32_t ids[kBatch];
    std::conditional_t<kContributing, Slab<kBatch, kContributions>, Empty> slab;
  };

  // Blends one surfel into one pixel; false if it is not hit. contribution gets what the pixel adds.
  COSURFGS_FN static bool BlendHit(const Record& r, float near, int32_t index, State& state, float* contribution) {
    Hit h;
    if (!Intersect<(kMaps >= kGeometry)>(r, state.x, state.y, near, h)) return false;
    const float t = state.transmittance, t_after = t - t * h.alpha;
    if (t_after < kMinTransmittance) {
      state.active = false;
      return false;
    }
    const float w = h.alpha * t;
    const bool is_front = t > kMedianTransmittance;
    state.transmittance = t_after;
    state.last = index;
    for (int c = 0; c < 3; ++c) state.color[c] += w * r.s.color[c];
    if (kMaps >= kGeometry) {
      if (kMaps >= kEverything) state.distortion += w * (h.z * (1.0f - t) - state.depth) * 2.0f;
      state.depth += w * h.z;
      if (is_front) {
        state.median = h.z;
        state.median_index = index;
      }
      state.plane += w * r.s.plane_distance;
      for (int c = 0; c < 3; ++c) state.normal[c] += w * r.s.normal[c];
    }
    if (kContributing) {
      contribution[0] = contribution[1] = w;
      contribution[2] = 1.0f;
      contribution[3] = is_front ? 1.0f : 0.0f;
    }
    return true;
  }

  COSURFGS_FN static void WritePixel(const Args& args, const State& state) {
    if (state.x >= args.view->width || state.y >= args.view->height) return;
    const int64_t pixel = int64_t(state.y) * args.view->width + state.x;
    const Image& image = args.image;
    image.transmittance[pixel] = state.transmittance;
    image.last[pixel] = state.last;
    for (int c = 0; c < 3; ++c) image.color[3 * pixel + c] = state.color[c] + state.transmittance * args.background[c];
    if (kMaps >= kGeometry) {
      image.depth_sum[pixel] = state.depth;
      image.median_depth[pixel] = state.median;
      image.median_index[pixel] = state.median_index;
      image.plane_sum[pixel] = state.plane;
      for (int c = 0; c < 3; ++c) image.normal_sum[3 * pixel + c] = state.normal[c];
    }
    if (kMaps >= kEverything) image.distortion[pixel] = state.distortion;
  }

  template <class Block>
  COSURFGS_BLOCK_FN static void Run(Block& block, const Args& args, int64_t index) {
    Shared& shared = block.shared();
    const int tile = int(index) + args.first_tile;
    const float near = args.view->near;
    const int64_t begin = args.tile_begin[tile], end = args.tile_begin[tile + 1];
    block.Each([&](int thread, State& state) {
      const PixelPosition position(args, tile, thread);
      state = State{};
      state.x = position.x;
      state.y = position.y;
      state.active = position.is_inside;
      state.transmittance = 1.0f;
      state.last = state.median_index = -1;
    });
    for (int64_t first = begin; first < end; first += kBatch) {
      if (block.None([](const State& state) { return state.active; })) break;
      const int size = int(end - first < kBatch ? end - first : kBatch);
      const int32_t position = int32_t(first - begin);  // in the tile's list
      block.Each([&](int thread, State&) { CopyBatch<kBatch>(args, first, size, thread, shared.records, shared.ids); });
      if constexpr (kContributing) {
        block.template Rows<4, SumOfContributions>(
            size, shared.slab, [&](State& state, int i, float* values) {
              return state.active && BlendHit(shared.records[i], near, position + i, state, values);
            });
        block.Each([&](int thread, State&) {
          ReadSlab<SumOfContributions>(shared.slab, size, thread, [&](int i, int k, float value) {
            const int64_t row = PairRow(args.rows, shared.records[i].box, shared.ids[i], tile % args.tiles_x,
                                        tile / args.tiles_x);
            args.rows.rows[kContributions * row + k] = value;
          });
        });
      } else {
        block.Each([&](int, State& state) {
          for (int i = 0; i < size && state.active; ++i) {
            BlendHit(shared.records[i], near, position + i, state, nullptr);
          }
        });
      }
    }
    block.Each([&](int, State& state) { WritePixel(args, state); });
  }
};

// Backward: every pixel replays its hits from the last one. Rows of gradients that no pixel adds to are not written: they must
// be zero before.
template <int kMaps, bool kDeterministic>
struct BlendTileBackwardBlock {
  using Args = BlendArgs;
  static constexpr int kThreads = kTileThreads;
  static constexpr int kBatch = 32;
  static constexpr int kUsed = kMaps == kColorOnly ? kColorGradient : kAllGradient;
  struct State {
    int x, y;
    int32_t last, median_index;
    float transmittance;  // behind the surfels replayed so far
    float behind;         // sum of w e over those behind, plus the background's part
    float color[3], depth, median, normal[3], plane, distortion;  // gradients
    float final_transmittance, depth_total, depth_behind;
  };
  struct Shared {
    Record records[kBatch];
    int32_t ids[kBatch];
    int32_t last;  // of any pixel of the tile
    Slab<kBatch, kUsed> slab;
  };

  COSURFGS_FN static void LoadPixel(const Args& args, int tile, int thread, State& state) {
    const PixelPosition position(args, tile, thread);
    state = State{};
    state.x = position.x;
    state.y = position.y;
    state.last = state.median_index = -1;
    if (!position.is_inside) return;
    const int64_t pixel = int64_t(state.y) * args.view->width + state.x;
    const ImageGradient& g = args.gradient;
    state.last = args.image.last[pixel];
    state.transmittance = args.image.transmittance[pixel];
    float g_transmittance = g.transmittance[pixel];
    for (int c = 0; c < 3; ++c) {
      state.color[c] = g.color[3 * pixel + c];
      g_transmittance += state.color[c] * args.background[c];
    }
    state.behind = state.transmittance * g_transmittance;
    if (kMaps >= kGeometry) {
      state.depth = g.depth_sum[pixel];
      state.median = g.median_depth[pixel];
      state.plane = g.plane_sum[pixel];
      for (int c = 0; c < 3; ++c) state.normal[c] = g.normal_sum[3 * pixel + c];
      state.median_index = args.image.median_index[pixel];
    }
    if (kMaps >= kEverything) {
      state.final_transmittance = state.transmittance;
      state.distortion = g.distortion[pixel];
      state.depth_total = args.image.depth_sum[pixel];
    }
  }

  // One hit of the replay; false if the surfel is not hit. row gets kUsed numbers.
  COSURFGS_FN static bool Replay(const Record& r, float near, int32_t index, State& state, float* row) {
    Hit h;
    if (index > state.last || !Intersect<(kMaps >= kGeometry)>(r, state.x, state.y, near, h)) return false;
    const float inv = Reciprocal(1.0f - h.alpha);
    const float t = state.transmittance * inv, w = h.alpha * t;
    // e: what the loss gains per unit of this hit's weight.
    float e = state.color[0] * r.s.color[0] + state.color[1] * r.s.color[1] + state.color[2] * r.s.color[2];
    float g_z = 0.0f;
    if (kMaps >= kGeometry) {
      e += state.normal[0] * r.s.normal[0] + state.normal[1] * r.s.normal[1] + state.normal[2] * r.s.normal[2] +
           state.plane * r.s.plane_distance + state.depth * h.z;
      g_z = w * state.depth + (state.median_index == index ? state.median : 0.0f);
      if (kMaps >= kEverything) {
        const float alpha_front = 1.0f - t, alpha_behind = state.transmittance - state.final_transmittance;
        const float depth_front = state.depth_total - state.depth_behind - w * h.z;
        const float g = state.distortion * 2.0f;
        e += g * (h.z * (alpha_front - alpha_behind) + state.depth_behind - depth_front);
        g_z += g * w * (alpha_front - alpha_behind);
        state.depth_behind += w * h.z;
      }
    }
    const float g_alpha = h.unclamped <= kMaxAlpha ? t * e - state.behind * inv : 0.0f;
    state.behind += w * e;
    state.transmittance = t;
    const float g_log_alpha = g_alpha * h.alpha;  // gradient of log alpha: of the opacity, and -2 of sigma
    const float g_sigma = g_log_alpha * -0.5f;
    // The disc: sigma = u^2 + v^2. The screen-space filter: sigma = 2 (dx^2 + dy^2).
    const float u = h.is_disc ? h.u : 0.0f, v = h.is_disc ? h.v : 0.0f, inv_pz = h.is_disc ? h.inv_pz : 0.0f;
    const float g_screen = h.is_disc ? 0.0f : g_sigma * (2.0f * kLowPass);
    float g_u = g_sigma * u * 2.0f, g_v = g_sigma * v * 2.0f;
    if (kMaps >= kGeometry) {
      g_u += (h.is_disc ? g_z : 0.0f) * r.s.m2[0];
      g_v += (h.is_disc ? g_z : 0.0f) * r.s.m2[1];
      row[kGradM2] = g_z * u;
      row[kGradM2 + 1] = g_z * v;
      row[kGradM2 + 2] = g_z;
      row[kGradPlane] = w * state.plane;
      for (int c = 0; c < 3; ++c) row[kGradNormal + c] = w * state.normal[c];
    }
    const float g_px = g_u * inv_pz, g_py = g_v * inv_pz, g_pz = -(g_px * u + g_py * v);
    const float g_dx = g_px * r.s.a[0] + g_py * r.s.a[1] + g_pz * r.s.a[2] + g_screen * h.dx;
    const float g_dy = g_px * r.s.b[0] + g_py * r.s.b[1] + g_pz * r.s.b[2] + g_screen * h.dy;
    row[kGradA] = g_px * h.dx;
    row[kGradA + 1] = g_py * h.dx;
    row[kGradA + 2] = g_pz * h.dx;
    row[kGradB] = g_px * h.dy;
    row[kGradB + 1] = g_py * h.dy;
    row[kGradB + 2] = g_pz * h.dy;
    row[kGradC] = g_pz;
    row[kGradCenter] = -g_dx;
    row[kGradCenter + 1] = -g_dy;
    row[kGradAbsolute] = fabsf(g_dx);
    row[kGradAbsolute + 1] = fabsf(g_dy);
    row[kGradAlpha] = g_log_alpha;
    for (int c = 0; c < 3; ++c) row[kGradColor + c] = w * state.color[c];
    return true;
  }

  template <class Block>
  COSURFGS_BLOCK_FN static void Run(Block& block, const Args& args, int64_t index) {
    Shared& shared = block.shared();
    const int tile = int(index) + args.first_tile;
    const float near = args.view->near;
    const int64_t begin = args.tile_begin[tile];
    block.Each([&](int thread, State& state) {
      if (thread == 0) shared.last = -1;
      LoadPixel(args, tile, thread, state);
    });
    block.Each([&](int, State& state) { AtomicMax(&shared.last, state.last); });
    // Positions [first, first + size) of the tile's list, from the back; a batch is replayed from its end.
    const int32_t count = shared.last + 1;
    for (int32_t end = count; end > 0; end -= kBatch) {
      const int32_t first = end > kBatch ? end - kBatch : 0, size = end - first;
      block.Each([&](int thread, State&) {
        CopyBatch<kBatch>(args, begin + first, size, thread, shared.records, shared.ids);
      });
      block.template Rows<(kUsed <= 16 ? 16 : 32), Sum>(size, shared.slab, [&](State& state, int step, float* row) {
        const int i = size - 1 - step;
        return Replay(shared.records[i], near, first + i, state, row);
      });
      block.Each([&](int thread, State&) {
        ReadSlab<Sum>(shared.slab, size, thread, [&](int step, int k, float value) {
          const int i = size - 1 - step;
          if (kDeterministic) {
            const int64_t row = PairRow(args.rows, shared.records[i].box, shared.ids[i], tile % args.tiles_x,
                                        tile / args.tiles_x);
            args.rows.rows[kUsed * row + k] = value;
          } else {
            AtomicAdd(args.sums + int64_t(kUsed) * shared.ids[i] + k, value);
          }
        });
      });
    }
  }
};

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
