// What one GPU block does for one tile: blending, and the backward pass. The same formulas as
// raster/blend_kernels.cc for one pixel.
//
// A block has four warps for a tile; a warp has a patch of 8x8 pixels and a thread two of them, one
// above the other: what they share (a column, the numbers of a surfel, the sums over lanes) is paid
// for once. Surfels come through shared memory in batches. Lane i of a warp looks whether surfel i
// of a batch touches the patch, and the warp visits those that do: bits of a ballot, one after the
// other. Sums over a tile's pixels are made per warp by exchanging registers, kept per warp and
// surfel of the batch in shared memory, and added over the warps when the batch is done: no two
// warps wait for each other within a batch, and the order of additions is fixed.
#pragma once

#include <string.h>

#include <cstddef>
#include <type_traits>

#include "gpu/slab.h"
#include "raster/raster.h"
#include "common/scalar.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {

struct BlendArgs {
  const View* view;
  const Record* records;
  const int64_t* tile_begin;
  const int32_t* lists;
  int tiles_x, first_tile;
  float low_pass;  // of the view
  const float* background;
  Image image;
  ImageGradient gradient;
  PairRows rows;  // contributions or gradients; rows.rows may be null
  float* sums;    // backward without rows: per surfel, added to in any order
};

// The tile of a block.
struct TilePlace {
  int index, x, y;  // x, y: in tiles
  COSURFGS_FN TilePlace(const BlendArgs& args, int64_t block) {
    index = int(block) + args.first_tile;
    x = index % args.tiles_x;
    y = index / args.tiles_x;
  }
};

// The pixels of a thread: (x, y) and kRows below it.
struct ThreadPixels {
  static constexpr int kRows = kPatch / kPixels;
  int x, y, width, height;
  COSURFGS_FN ThreadPixels(const BlendArgs& args, const TilePlace& tile, int thread) {
    const int warp = thread / kWarp, lane = thread % kWarp;
    x = tile.x * kTile + warp % kPatches * kPatch + lane % kPatch;
    y = tile.y * kTile + warp / kPatches * kPatch + lane / kPatch;
    width = args.view->width;
    height = args.view->height;
  }
  COSURFGS_FN bool is_inside(int p) const { return x < width && y + p * kRows < height; }
  COSURFGS_FN int64_t index(int p) const { return int64_t(y + p * kRows) * width + x; }
  COSURFGS_FN float center_x() const { return float(x) + 0.5f; }
  COSURFGS_FN float center_y(int p) const { return float(y + p * kRows) + 0.5f; }
};

// A surfel in shared memory.
struct alignas(16) Visited {
  Projected<float> s;
  float nearest;  // hits must not be nearer; minus infinity where none can be too near
};

// Surfels of a batch, and what is found out about each of them once.
template <int kBatch>
struct Batch {
  Visited surfels[kBatch];
  float* rows[kBatch];      // where sums over the tile's pixels go
  uint8_t patches[kBatch];  // bit w: the surfel's box touches the patch of warp w
};

// Bit w: the box touches the patch of warp w of the tile.
COSURFGS_FN int TouchedPatches(const Box& box, const TilePlace& tile) {
  const int x = tile.x * kTile + kPatch,
            y = tile.y * kTile + kPatch;  // where the second column and row of patches begin
  const int columns = (box.x0 < x ? 1 : 0) | (box.x1 >= x ? 2 : 0);
  return (box.y0 < y ? columns : 0) | (box.y1 >= y ? columns << kPatches : 0);
}

// The end of a record, which a thread reads in one go.
struct alignas(16) RecordEnd {
  float cutoff;
  Box box;
  int32_t may_be_near;
};
static_assert(offsetof(Record, cutoff) == sizeof(Projected<float>) &&
                  sizeof(Projected<float>) % 16 == 0 &&
                  offsetof(Record, cutoff) + sizeof(RecordEnd) == kRecordBytes,
              "16 bytes at a time");

// Copies surfels [first, first + size) of the tile's list into shared memory, 16 bytes a thread and
// turn. By memcpy, as a compiler may take for granted that words are not the floats that are read
// afterwards. row(box, id) is what rows get.
template <int kBatch, class Row>
COSURFGS_FN void CopyBatch(const BlendArgs& args, const TilePlace& tile, int64_t first, int size,
                           int thread, Batch<kBatch>& batch, Row row) {
  constexpr int kBytes = 16, kChunks = int(sizeof(Projected<float>)) / kBytes;
  constexpr int kTeam = 8, kTeams = kTileThreads / kTeam;  // threads for a surfel
  static_assert(kChunks <= kTeam && kBatch <= kTileThreads,
                "a thread for each chunk, and one for each surfel");
  struct alignas(kBytes) Chunk {
    char bytes[kBytes];
  } chunk;
  const int32_t* ids = args.lists + first;
  if (thread < size) {
    RecordEnd end;
    memcpy(&end, __builtin_assume_aligned(&args.records[ids[thread]].cutoff, kBytes), sizeof(end));
    batch.surfels[thread].nearest = end.may_be_near ? args.view->near : -INFINITY;
    batch.patches[thread] = uint8_t(TouchedPatches(end.box, tile));
    batch.rows[thread] = row(end.box, ids[thread]);
  }
  if (thread % kTeam >= kChunks) return;
  COSURFGS_UNROLL
  for (int turn = 0; turn < (kBatch + kTeams - 1) / kTeams; ++turn) {
    const int i = turn * kTeams + thread / kTeam, offset = thread % kTeam * kBytes;
    if (i >= size) return;
    const char* source = reinterpret_cast<const char*>(args.records + ids[i]) + offset;
    char* target = reinterpret_cast<char*>(batch.surfels + i) + offset;
    memcpy(&chunk, __builtin_assume_aligned(source, kBytes), kBytes);
    memcpy(__builtin_assume_aligned(target, kBytes), &chunk, kBytes);
  }
}

// What the pixels of a column share of a surfel: the offset from its centre, and what it adds to p
// (raster/surfel_math.h).
struct Column {
  float dx, px, py, pz, dx2;
  COSURFGS_FN Column(const Projected<float>& s, float x) {
    dx = x - s.center[0];
    px = dx * s.a[0];
    py = dx * s.a[1];
    pz = Fma(dx, s.a[2], s.c);
    dx2 = dx * dx;
  }
};

struct Hit {
  float dx, dy, u, v, inv_pz, alpha, z;
  bool is_disc, is_clamped, is_hit;
};

// Where the surfel is hit at a pixel, and whether it is; never where y is NaN. Without branches, so
// that the pixels of a thread are worked on side by side, and with every multiply-add spelt out:
// forward and backward must decide alike. Pixels outside of the surfel's box need no test, as the
// box holds all pixels of sufficient alpha. Without kWithDepth z is only set where it may be too
// near.
template <bool kWithDepth>
COSURFGS_FN Hit Intersect(const Visited& r, const Column& column, float y, float low_pass) {
  const Projected<float>& s = r.s;
  Hit h;
  h.dx = column.dx;
  h.dy = y - s.center[1];
  const float px = Fma(h.dy, s.b[0], column.px);
  const float py = Fma(h.dy, s.b[1], column.py);
  const float pz = Fma(h.dy, s.b[2], column.pz);
  h.inv_pz = FastReciprocal(pz);
  h.u = px * h.inv_pz;
  h.v = py * h.inv_pz;
  const float sigma_disc = Fma(h.u, h.u, h.v * h.v);
  const float sigma_screen = Fma(h.dy, h.dy, column.dx2) * low_pass;
  h.is_disc =
      sigma_disc <= sigma_screen;  // false where the ray lies in the disc's plane: NaN or infinity
  const float sigma = h.is_disc ? sigma_disc : sigma_screen;
  const float unclamped = FastExpMinusHalf(sigma) * s.opacity;
  h.is_hit = kMinAlpha <= unclamped;
  h.is_clamped = unclamped > kMaxAlpha;
  h.alpha = Min(unclamped, kMaxAlpha);
  if (kWithDepth || r.nearest > -INFINITY) {
    const float z = Fma(h.u, s.m2[0], Fma(h.v, s.m2[1], s.m2[2]));
    h.z = h.is_disc ? z : s.m2[2];
    h.is_hit = h.is_hit & (r.nearest <= h.z);
  }
  return h;
}

// The order in which a warp visits the surfels of a batch.
enum class Order { kForward, kBackward };

// The hits of a thread's pixels.
struct Hits {
  Hit of[kPixels];
};

// Forward. Rows of contributions that no pixel adds to are not written: they must be zero before.
template <int kMaps, bool kContributing>
struct BlendTileBlock {
  using Args = BlendArgs;
  static constexpr int kThreads = kTileThreads, kMinBlocks = kContributing ? 7 : 8;
  static constexpr int kBatch = 64;
  struct Pixel {
    float y;  // of its centre; NaN if it takes no (more) hits
    float transmittance, color[3], depth, median, normal[3], plane, distortion;
    int32_t last, median_index;
  };
  struct State {
    float x;
    Pixel pixels[kPixels];
  };
  struct Empty {};
  struct Shared {
    Batch<kBatch> batch;
    std::conditional_t<kContributing, Slab<kBatch, kContributions>, Empty> slab;
  };

  COSURFGS_FN static void StartPixels(const ThreadPixels& at, State& state) {
    state = State{};
    state.x = at.center_x();
    for (int p = 0; p < kPixels; ++p) {
      Pixel& pixel = state.pixels[p];
      pixel.y = at.is_inside(p) ? at.center_y(p) : NAN;
      pixel.transmittance = 1.0f;
      pixel.last = pixel.median_index = -1;
    }
  }
  COSURFGS_FN static bool IsActive(const State& state) {
    bool is_active = false;
    for (int p = 0; p < kPixels; ++p)
      is_active = is_active || state.pixels[p].y == state.pixels[p].y;
    return is_active;
  }

  // Whether a pixel of the thread is hit.
  COSURFGS_FN static bool Meet(const Visited& r, float low_pass, const State& state, Hits& hits) {
    const Column column(r.s, state.x);
    bool is_hit = false;
    COSURFGS_UNROLL
    for (int p = 0; p < kPixels; ++p) {
      hits.of[p] = Intersect<(kMaps >= kGeometry)>(r, column, state.pixels[p].y, low_pass);
      is_hit = is_hit | hits.of[p].is_hit;
    }
    return is_hit;
  }

  // Blends a surfel into a pixel, if it is hit. contribution (may be null) gains what the pixel
  // adds.
  COSURFGS_FN static void Blend(const Visited& r, const Hit& h, int32_t index, Pixel& pixel,
                                float* contribution) {
    const float t = pixel.transmittance, t_after = t - t * h.alpha;
    const bool stops = h.is_hit & (t_after < kMinTransmittance);
    const bool is_blended = h.is_hit & !stops;
    const bool is_front = is_blended & (t > kMedianTransmittance);
    const float w = is_blended ? h.alpha * t : 0.0f;
    pixel.y = stops ? NAN : pixel.y;
    pixel.transmittance = is_blended ? t_after : t;
    pixel.last = is_blended ? index : pixel.last;
    for (int c = 0; c < 3; ++c) pixel.color[c] += w * r.s.color[c];
    if (kMaps >= kGeometry) {
      if (kMaps >= kAll) pixel.distortion += w * (h.z * (1.0f - t) - pixel.depth) * 2.0f;
      pixel.depth += w * h.z;
      pixel.median = is_front ? h.z : pixel.median;
      pixel.median_index = is_front ? index : pixel.median_index;
      pixel.plane += w * r.s.plane_distance;
      for (int c = 0; c < 3; ++c) pixel.normal[c] += w * r.s.normal[c];
    }
    if (kContributing) {
      contribution[0] += w;
      contribution[1] = Max(contribution[1], w);
      contribution[2] += is_blended ? 1.0f : 0.0f;
      contribution[3] += is_front ? 1.0f : 0.0f;
    }
  }
  COSURFGS_FN static void BlendAll(const Visited& r, const Hits& hits, int32_t index, State& state,
                                   float* contribution) {
    COSURFGS_UNROLL
    for (int p = 0; p < kPixels; ++p) Blend(r, hits.of[p], index, state.pixels[p], contribution);
  }

  COSURFGS_FN static void WritePixel(const Args& args, int64_t index, const Pixel& pixel) {
    const Image& image = args.image;
    image.transmittance[index] = pixel.transmittance;
    image.last[index] = pixel.last;
    for (int c = 0; c < 3; ++c)
      image.color[3 * index + c] = pixel.color[c] + pixel.transmittance * args.background[c];
    if (kMaps >= kGeometry) {
      image.depth_sum[index] = pixel.depth;
      image.median_depth[index] = pixel.median;
      image.median_index[index] = pixel.median_index;
      image.plane_sum[index] = pixel.plane;
      for (int c = 0; c < 3; ++c) image.normal_sum[3 * index + c] = pixel.normal[c];
    }
    if (kMaps >= kAll) image.distortion[index] = pixel.distortion;
  }

  template <class Block>
  COSURFGS_BLOCK_FN static void Run(Block& block, const Args& args, int64_t index) {
    Shared& shared = block.shared();
    const TilePlace tile(args, index);
    const int64_t begin = args.tile_begin[tile.index], end = args.tile_begin[tile.index + 1];
    block.Each(
        [&](int thread, State& state) { StartPixels(ThreadPixels(args, tile, thread), state); });
    for (int64_t first = begin; first < end; first += kBatch) {
      if (block.None([](const State& state) { return IsActive(state); })) break;
      const int size = int(end - first < kBatch ? end - first : kBatch);
      const int32_t position = int32_t(first - begin);  // in the tile's list
      block.Each([&](int thread, State&) {
        CopyBatch(args, tile, first, size, thread, shared.batch, [&](const Box& box, int32_t id) {
          return kContributing
                     ? args.rows.rows + kContributions * PairRow(args.rows, box, id, tile.x, tile.y)
                     : nullptr;
        });
      });
      const auto reach = [size](const State& state) { return IsActive(state) ? size : 0; };
      const auto meet = [&](const State& state, int i, Hits& hits) {
        return Meet(shared.batch.surfels[i], args.low_pass, state, hits);
      };
      if constexpr (kContributing) {
        block.template Rows<SumOfContributions>(
            shared.batch.patches, shared.slab, Order::kForward, reach, meet,
            [&](State& state, int i, const Hits& hits, const bool*, float* values) {
              for (int k = 0; k < kContributions; ++k) values[k] = 0.0f;
              BlendAll(shared.batch.surfels[i], hits, position + i, state, values);
            });
        block.Each([&](int thread, State&) {
          ReadSlab<SumOfContributions>(shared.slab, size, thread, [&](int i, int k, float value) {
            shared.batch.rows[i][k] = value;
          });
        });
      } else {
        block.Visit(shared.batch.patches, Order::kForward, reach, meet,
                    [&](State& state, int i, const Hits& hits) {
                      BlendAll(shared.batch.surfels[i], hits, position + i, state, nullptr);
                    });
      }
    }
    block.Each([&](int thread, State& state) {
      const ThreadPixels at(args, tile, thread);
      for (int p = 0; p < kPixels; ++p) {
        if (at.is_inside(p)) WritePixel(args, at.index(p), state.pixels[p]);
      }
    });
  }
};

// Backward: every pixel replays its hits from the last one. Rows of gradients that no pixel adds to
// are not written: they must be zero before. Without kHasProbe the absolute gradients are left out,
// and the rows' columns for them are zero.
template <int kMaps, bool kDeterministic, bool kHasProbe>
struct BlendTileBackwardBlock {
  using Args = BlendArgs;
  static constexpr int kThreads = kTileThreads, kMinBlocks = kMaps == kAll        ? 5
                                                             : kMaps == kGeometry ? 6
                                                                                  : 8;
  static constexpr int kBatch = 32;
  static constexpr int kUsed = kMaps == kColor ? kColorGradient : kAllGradient;
  static constexpr int kNumAbsolute = kGradAlpha - kGradAbsolute;
  static constexpr int kSummed =
      kHasProbe ? kUsed : kUsed - kNumAbsolute;  // numbers that are put together
  struct Pixel {
    float y;
    int32_t last, median_index;
    float transmittance;  // behind the surfels replayed so far
    float behind;         // sum of w e over those behind, plus the background's part
    float color[3], depth, median, normal[3], plane, distortion;  // gradients
    float final_transmittance, depth_total, depth_behind;
  };
  struct State {
    float x;
    Pixel pixels[kPixels];
  };
  struct Shared {
    Batch<kBatch> batch;
    int32_t last;  // of any pixel of the tile
    Slab<kBatch, kSummed> slab;
  };

  // Where the numbers that are put together lie in a row, and the other way round.
  COSURFGS_FN static constexpr int SlotOf(int summed) {
    return kHasProbe || summed < kGradAbsolute ? summed : summed + kNumAbsolute;
  }
  COSURFGS_FN static constexpr int SummedOf(int slot) {
    return kHasProbe || slot < kGradAlpha ? slot : slot - kNumAbsolute;
  }

  COSURFGS_FN static void LoadPixel(const Args& args, int64_t index, Pixel& pixel) {
    const ImageGradient& g = args.gradient;
    pixel.last = args.image.last[index];
    pixel.transmittance = args.image.transmittance[index];
    float g_transmittance = g.transmittance[index];
    for (int c = 0; c < 3; ++c) {
      pixel.color[c] = g.color[3 * index + c];
      g_transmittance += pixel.color[c] * args.background[c];
    }
    pixel.behind = pixel.transmittance * g_transmittance;
    if (kMaps >= kGeometry) {
      pixel.depth = g.depth_sum[index];
      pixel.median = g.median_depth[index];
      pixel.plane = g.plane_sum[index];
      for (int c = 0; c < 3; ++c) pixel.normal[c] = g.normal_sum[3 * index + c];
      pixel.median_index = args.image.median_index[index];
    }
    if (kMaps >= kAll) {
      pixel.final_transmittance = pixel.transmittance;
      pixel.distortion = g.distortion[index];
      pixel.depth_total = args.image.depth_sum[index];
    }
  }
  COSURFGS_FN static void LoadPixels(const Args& args, const ThreadPixels& at, State& state) {
    state = State{};
    state.x = at.center_x();
    for (int p = 0; p < kPixels; ++p) {
      Pixel& pixel = state.pixels[p];
      pixel.y = at.center_y(p);
      pixel.last = pixel.median_index = -1;
      if (at.is_inside(p)) LoadPixel(args, at.index(p), pixel);
    }
  }
  COSURFGS_FN static int32_t Last(const State& state) {
    int32_t last = -1;
    for (int p = 0; p < kPixels; ++p)
      last = state.pixels[p].last > last ? state.pixels[p].last : last;
    return last;
  }

  // Whether a pixel of the thread was hit.
  COSURFGS_FN static bool Meet(const Visited& r, float low_pass, int32_t index, const State& state,
                               Hits& hits) {
    const Column column(r.s, state.x);
    bool is_hit = false;
    COSURFGS_UNROLL
    for (int p = 0; p < kPixels; ++p) {
      Hit& h = hits.of[p];
      h = Intersect<(kMaps >= kGeometry)>(r, column, state.pixels[p].y, low_pass);
      h.is_hit = h.is_hit & (index <= state.pixels[p].last);
      is_hit = is_hit | h.is_hit;
    }
    return is_hit;
  }

  // Products are stored for the first pixel that a thread replays and added for the other.
  template <bool kFirst>
  struct Row {
    float* values;
    COSURFGS_FN void Add(int slot, float a, float b) const {
      float& value = values[SummedOf(slot)];
      value = kFirst ? a * b : Fma(a, b, value);
    }
    COSURFGS_FN void Add(int slot, float a) const {
      float& value = values[SummedOf(slot)];
      value = kFirst ? a : value + a;
    }
  };

  // Replays a surfel for a pixel. Where it was not hit its alpha is 0, and so is all that is added.
  template <bool kFirst>
  COSURFGS_FN static void Replay(const Visited& r, const Hit& h, float low_pass, int32_t index,
                                 Pixel& pixel, Row<kFirst> row) {
    const float alpha = h.is_hit ? h.alpha : 0.0f;
    const float inv = FastReciprocal(1.0f - alpha);
    // Selected, as the reciprocal of 1 need not be 1.
    const float t = h.is_hit ? pixel.transmittance * inv : pixel.transmittance, w = alpha * t;
    // e: what the loss gains per unit of this hit's weight.
    float e = pixel.color[0] * r.s.color[0] + pixel.color[1] * r.s.color[1] +
              pixel.color[2] * r.s.color[2];
    float g_z = 0.0f;
    if (kMaps >= kGeometry) {
      e += pixel.normal[0] * r.s.normal[0] + pixel.normal[1] * r.s.normal[1] +
           pixel.normal[2] * r.s.normal[2] + pixel.plane * r.s.plane_distance + pixel.depth * h.z;
      g_z = w * pixel.depth + (pixel.median_index == index ? pixel.median : 0.0f);
      if (kMaps >= kAll) {
        const float alpha_front = 1.0f - t,
                    alpha_behind = pixel.transmittance - pixel.final_transmittance;
        const float depth_front = pixel.depth_total - pixel.depth_behind - w * h.z;
        const float g = pixel.distortion * 2.0f;
        e += g * (h.z * (alpha_front - alpha_behind) + pixel.depth_behind - depth_front);
        g_z += g * w * (alpha_front - alpha_behind);
        pixel.depth_behind += w * h.z;
      }
    }
    const float g_alpha = h.is_clamped ? 0.0f : t * e - pixel.behind * inv;
    pixel.behind += w * e;
    pixel.transmittance = t;
    const float g_log_alpha =
        g_alpha * alpha;  // gradient of log alpha: of the opacity, and -2 of sigma
    // The disc: sigma = u^2 + v^2. The screen-space filter: sigma = low_pass (dx^2 +
    // dy^2).
    const float u = h.is_disc ? h.u : 0.0f, v = h.is_disc ? h.v : 0.0f,
                inv_pz = h.is_disc ? h.inv_pz : 0.0f;
    const float g_screen = h.is_disc ? 0.0f : g_log_alpha * -low_pass;
    float g_u = -g_log_alpha * u, g_v = -g_log_alpha * v;
    if (kMaps >= kGeometry) {
      g_u += g_z * r.s.m2[0];  // goes no further where inv_pz is 0
      g_v += g_z * r.s.m2[1];
      row.Add(kGradM2, g_z, u);
      row.Add(kGradM2 + 1, g_z, v);
      row.Add(kGradM2 + 2, g_z);
      row.Add(kGradPlane, w, pixel.plane);
      for (int c = 0; c < 3; ++c) row.Add(kGradNormal + c, w, pixel.normal[c]);
    }
    const float g_px = g_u * inv_pz, g_py = g_v * inv_pz, g_pz = -(g_px * u + g_py * v);
    const float g_dx = g_px * r.s.a[0] + g_py * r.s.a[1] + g_pz * r.s.a[2] + g_screen * h.dx;
    const float g_dy = g_px * r.s.b[0] + g_py * r.s.b[1] + g_pz * r.s.b[2] + g_screen * h.dy;
    row.Add(kGradA, g_px, h.dx);
    row.Add(kGradA + 1, g_py, h.dx);
    row.Add(kGradA + 2, g_pz, h.dx);
    row.Add(kGradB, g_px, h.dy);
    row.Add(kGradB + 1, g_py, h.dy);
    row.Add(kGradB + 2, g_pz, h.dy);
    row.Add(kGradC, g_pz);
    row.Add(kGradCenter, -g_dx);
    row.Add(kGradCenter + 1, -g_dy);
    if (kHasProbe) {
      row.Add(kGradAbsolute, fabsf(g_dx));
      row.Add(kGradAbsolute + 1, fabsf(g_dy));
    }
    row.Add(kGradAlpha, g_log_alpha);
    for (int c = 0; c < 3; ++c) row.Add(kGradColor + c, w, pixel.color[c]);
  }

  // Writes one number of a surfel's sum over the tile's pixels, or adds it to what the surfel has.
  COSURFGS_FN static void WriteNumber(float* row, int k, float value) {
    if (kDeterministic) {
      row[SlotOf(k)] = value;
    } else {
      AtomicAdd(row + SlotOf(k), value);
    }
  }

  template <class Block>
  COSURFGS_BLOCK_FN static void Run(Block& block, const Args& args, int64_t index) {
    Shared& shared = block.shared();
    const TilePlace tile(args, index);
    const int64_t begin = args.tile_begin[tile.index];
    block.Each([&](int thread, State& state) {
      if (thread == 0) shared.last = -1;
      LoadPixels(args, ThreadPixels(args, tile, thread), state);
    });
    block.Each([&](int, State& state) { AtomicMax(&shared.last, Last(state)); });
    // Positions [first, first + size) of the tile's list, from the back; a batch is replayed from
    // its end.
    const int32_t count = shared.last + 1;
    for (int32_t end = count; end > 0; end -= kBatch) {
      const int32_t first = end > kBatch ? end - kBatch : 0, size = end - first;
      block.Each([&](int thread, State&) {
        CopyBatch(
            args, tile, begin + first, size, thread, shared.batch, [&](const Box& box, int32_t id) {
              return kDeterministic
                         ? args.rows.rows + kUsed * PairRow(args.rows, box, id, tile.x, tile.y)
                         : args.sums + kUsed * int64_t(id);
            });
      });
      block.template Rows<Sum>(
          shared.batch.patches, shared.slab, Order::kBackward,
          [&](const State& state) {
            return Last(state) + 1 - first < size ? Last(state) + 1 - first : size;
          },
          [&](const State& state, int i, Hits& hits) {
            return Meet(shared.batch.surfels[i], args.low_pass, first + i, state, hits);
          },
          [&](State& state, int i, const Hits& hits, const bool* is_any, float* values) {
            const Visited& surfel = shared.batch.surfels[i];
            if (is_any[0]) {
              Replay(surfel, hits.of[0], args.low_pass, first + i, state.pixels[0],
                     Row<true>{values});
              if (is_any[1])
                Replay(surfel, hits.of[1], args.low_pass, first + i, state.pixels[1],
                       Row<false>{values});
            } else {
              Replay(surfel, hits.of[1], args.low_pass, first + i, state.pixels[1],
                     Row<true>{values});
            }
          });
      block.Each([&](int thread, State&) {
        ReadSlab<Sum>(shared.slab, size, thread, [&](int i, int k, float value) {
          WriteNumber(shared.batch.rows[i], k, value);
        });
      });
    }
  }
};

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
