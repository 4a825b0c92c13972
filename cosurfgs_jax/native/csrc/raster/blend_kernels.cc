// The kernels that blend surfels into tiles, and the backward pass, vectorised over the pixels of a
// block (raster/blocks.h). Compiled once per instruction set, into the namespace COSURFGS_VARIANT.
//
// Forward, a block goes through a chunk of surfels with its state in registers. Backward, a surfel
// goes through its blocks with its gradients in registers, and writes one row of sums per tile.

#include "raster/blocks.h"

#include <algorithm>

namespace cosurfgs {
namespace COSURFGS_VARIANT {
namespace {

inline float SumLanes(Vec v) {
  float sum = 0.0f;
  for (int lane = 0; lane < kLanes; ++lane) sum += v[lane];
  return sum;
}
inline float MaxLanes(Vec v) {
  float best = v[0];
  for (int lane = 1; lane < kLanes; ++lane) best = std::max(best, v[lane]);
  return best;
}

// What one block has gathered; lives in registers while a chunk of surfels is blended into it.
struct BlockState {
  Vec transmittance, color[3];
  Vec depth, median, normal[3], plane, distortion;
  IntVec last, median_index;
  Mask active;  // pixels that still take hits
};

// Four pixels of one row: the width of a block, and what is copied between blocks and images at a
// time.
typedef float Quad __attribute__((vector_size(16)));
typedef int32_t IntQuad __attribute__((vector_size(16)));
static_assert(kBlockWidth == 4, "quads");

template <class Q, class V>
inline Q GetQuad(const V& v, int row) {
  Q quad;
  std::memcpy(&quad, reinterpret_cast<const char*>(&v) + 16 * row, 16);
  return quad;
}
template <class Q, class V>
inline void SetQuad(V& v, int row, Q quad) {
  std::memcpy(reinterpret_cast<char*>(&v) + 16 * row, &quad, 16);
}

// Calls get(pixel, block, row of the block, pixels to copy: 1 to 4) for all that lies in the image.
template <class Get>
inline void ForQuads(const Tile& tile, const View& view, Get get) {
  const int width = std::min(kTile, view.width - tile.x),
            height = std::min(kTile, view.height - tile.y);
  for (int y = 0; y < height; ++y) {
    const int64_t line = int64_t(tile.y + y) * view.width + tile.x;
    for (int x = 0; x < width; x += kBlockWidth) {
      get(line + x, y / kBlockHeight * kBlocksX + x / kBlockWidth, y % kBlockHeight,
          std::min(kBlockWidth, width - x));
    }
  }
}

template <class T, class Q>
inline void StoreQuad(T* image, Q quad, int count) {
  if (count == 4) {
    std::memcpy(image, &quad, 16);
  } else {
    for (int i = 0; i < count; ++i) image[i] = quad[i];
  }
}
template <class Q, class T>
inline Q LoadQuad(const T* image, int count, T otherwise) {
  Q quad = otherwise - Q{};
  if (count == 4) {
    std::memcpy(&quad, image, 16);
  } else {
    for (int i = 0; i < count; ++i) quad[i] = image[i];
  }
  return quad;
}
inline void StoreQuad3(float* image, Quad r, Quad g, Quad b, int count) {
  const Quad rg = __builtin_shufflevector(r, g, 0, 4, 1, 5),
             rg_high = __builtin_shufflevector(r, g, 2, 6, 3, 7);
  const Quad parts[3] = {
      __builtin_shufflevector(rg, b, 0, 1, 4, 2),
      __builtin_shufflevector(__builtin_shufflevector(rg, b, 3, 5, 0, 0), rg_high, 0, 1, 4, 5),
      __builtin_shufflevector(__builtin_shufflevector(b, rg_high, 2, 6, 7, 3), b, 0, 1, 2, 3)};
  std::memcpy(image, parts, count * 12);
}
inline void LoadQuad3(const float* image, int count, Quad& r, Quad& g, Quad& b) {
  Quad p[3] = {};
  std::memcpy(p, image, count * 12);
  r = __builtin_shufflevector(__builtin_shufflevector(p[0], p[1], 0, 3, 6, 6), p[2], 0, 1, 2, 5);
  g = __builtin_shufflevector(__builtin_shufflevector(p[0], p[1], 1, 4, 7, 7), p[2], 0, 1, 2, 6);
  b = __builtin_shufflevector(__builtin_shufflevector(p[0], p[1], 2, 5, 5, 5), p[2], 0, 1, 4, 7);
}

template <int kMaps>
void WriteTile(const Tile& tile, const View& view, const float* background,
               const BlockState* states, const Image& image) {
  ForQuads(tile, view, [&](int64_t pixel, int b, int row, int count) {
    const BlockState& state = states[b];
    const auto quad = [&](const Vec& v) { return GetQuad<Quad>(v, row); };
    const Quad t = quad(state.transmittance);
    StoreQuad(image.transmittance + pixel, t, count);
    StoreQuad(image.last + pixel, GetQuad<IntQuad>(state.last, row), count);
    StoreQuad3(image.color + 3 * pixel, quad(state.color[0]) + t * background[0],
               quad(state.color[1]) + t * background[1], quad(state.color[2]) + t * background[2],
               count);
    if (kMaps >= kGeometry) {
      StoreQuad(image.depth_sum + pixel, quad(state.depth), count);
      StoreQuad(image.median_depth + pixel, quad(state.median), count);
      StoreQuad(image.median_index + pixel, GetQuad<IntQuad>(state.median_index, row), count);
      StoreQuad(image.plane_sum + pixel, quad(state.plane), count);
      StoreQuad3(image.normal_sum + 3 * pixel, quad(state.normal[0]), quad(state.normal[1]),
                 quad(state.normal[2]), count);
    }
    if (kMaps >= kAll) StoreQuad(image.distortion + pixel, quad(state.distortion), count);
  });
}

// Blends one surfel into one block. contribution (may be null) gains what the block adds to the
// surfel's.
template <int kMaps, bool kContributing>
inline void BlendHit(const Record& r, Vec x, Vec y, const View& view, int32_t index,
                     BlockState& state, float* contribution) {
  Hit h;
  if (!Intersect<(kMaps >= kGeometry)>(r, x, y, view, h)) return;
  const Vec t = state.transmittance;
  const Vec t_after = t - t * h.alpha;
  const Mask valid = And(h.valid, state.active);
  const Mask stop = And(valid, Less(t_after, Splat(kMinTransmittance)));
  const Mask blend = AndNot(valid, stop);
  state.active = AndNot(state.active, stop);
  const Vec w = Keep(blend, h.alpha * t);
  state.transmittance = Select(blend, t_after, t);
  state.last = SelectInt(blend, SplatInt(index), state.last);
  for (int c = 0; c < 3; ++c) state.color[c] += w * r.s.color[c];
  if (kMaps >= kGeometry) {
    const Mask front = And(blend, Less(Splat(kMedianTransmittance), t));
    const Vec z = Keep(blend, h.z);
    if (kMaps >= kAll) state.distortion += w * (z * (1.0f - t) - state.depth) * 2.0f;
    state.depth += w * z;
    state.median = Select(front, z, state.median);
    state.median_index = SelectInt(front, SplatInt(index), state.median_index);
    state.plane += w * r.s.plane_distance;
    for (int c = 0; c < 3; ++c) state.normal[c] += w * r.s.normal[c];
  }
  if (kContributing) {
    contribution[0] += SumLanes(w);
    contribution[1] = std::max(contribution[1], MaxLanes(w));
    contribution[2] += float(Count(blend));
    contribution[3] += float(Count(And(blend, Less(Splat(kMedianTransmittance), t))));
  }
}

template <int kMaps, bool kContributing>
void BlendTileImpl(const Tile& tile, const Record* records, const View& view,
                   const float* background, const Image& image, const PairRows* contributions) {
  BlockState states[kBlocks];
  BlockLists lists;
  float sums[kChunk][kContributions];
  const TileGrid grid(tile);
  uint64_t open = 0;  // blocks that still let light through
  for (int b = 0; b < kBlocks; ++b) {
    BlockState& state = states[b];
    state.transmittance = Splat(1.0f);
    state.depth = state.median = state.plane = state.distortion = Vec{};
    for (int c = 0; c < 3; ++c) state.color[c] = state.normal[c] = Vec{};
    state.last = state.median_index = SplatInt(-1);
    state.active = And(Less(grid.x[b % kBlocksX], Splat(float(view.width))),
                       Less(grid.y[b / kBlocksX], Splat(float(view.height))));
    if (Any(state.active)) open |= 1ull << b;
  }
  for (int32_t first = 0; first < tile.count; first += kChunk) {
    if (open == 0 && !kContributing)
      break;  // with contributions the rows of hidden surfels are written too
    const int32_t size = std::min(kChunk, tile.count - first);
    const int32_t* ids = tile.list + first;
    lists.Fill(tile, records, first, size, open);
    if (kContributing) std::memset(sums, 0, sizeof(sums));
    for (uint64_t blocks = open; blocks; blocks &= blocks - 1) {
      const int b = __builtin_ctzll(blocks);
      const Vec x = grid.x[b % kBlocksX], y = grid.y[b / kBlocksX];
      BlockState state = states[b];
      for (int k = 0; k < lists.counts[b]; ++k) {
        const int i = lists.of[b][k];
        BlendHit<kMaps, kContributing>(records[ids[i]], x, y, view, first + i, state, sums[i]);
        if (!Any(state.active)) {
          open &= ~(1ull << b);
          break;
        }
      }
      states[b] = state;
    }
    if (kContributing) {
      for (int32_t i = 0; i < size; ++i) {
        const int64_t row =
            PairRow(*contributions, records[ids[i]].box, ids[i], tile.x / kTile, tile.y / kTile);
        std::memcpy(contributions->rows + kContributions * row, sums[i], sizeof(sums[i]));
      }
    }
  }
  WriteTile<kMaps>(tile, view, background, states, image);
}

struct BackwardState {
  Vec transmittance[kBlocks];  // behind the surfels replayed so far
  Vec behind[kBlocks];         // sum of w e over those behind, plus the background's part
  Vec color[kBlocks][3];       // gradients
  Vec depth[kBlocks], median[kBlocks], normal[kBlocks][3], plane[kBlocks], distortion[kBlocks];
  Vec final_transmittance[kBlocks], depth_total[kBlocks], depth_behind[kBlocks];
  IntVec last[kBlocks], median_index[kBlocks];
  int32_t last_of_block[kBlocks];
};

template <int kMaps>
void LoadTile(const Tile& tile, const View& view, const float* background, const Image& image,
              const ImageGradient& gradient, BackwardState& state) {
  for (int b = 0; b < kBlocks; ++b) {
    state.last[b] = SplatInt(-1);
    state.transmittance[b] = Splat(1.0f);
    state.behind[b] = state.final_transmittance[b] = Vec{};
    for (int c = 0; c < 3; ++c) state.color[b][c] = Vec{};
    state.last_of_block[b] = -1;
    if (kMaps >= kGeometry) {
      state.median_index[b] = SplatInt(-1);
      state.depth[b] = state.median[b] = state.plane[b] = Vec{};
      for (int c = 0; c < 3; ++c) state.normal[b][c] = Vec{};
    }
    if (kMaps >= kAll) state.distortion[b] = state.depth_total[b] = state.depth_behind[b] = Vec{};
  }
  ForQuads(tile, view, [&](int64_t pixel, int b, int row, int count) {
    const auto load = [&](const float* map, Vec& v) {
      SetQuad(v, row, LoadQuad<Quad>(map + pixel, count, 0.0f));
    };
    const auto load3 = [&](const float* map, Vec* v) {
      Quad q[3];
      LoadQuad3(map + 3 * pixel, count, q[0], q[1], q[2]);
      for (int c = 0; c < 3; ++c) SetQuad(v[c], row, q[c]);
    };
    load3(gradient.color, state.color[b]);
    const Quad t = LoadQuad<Quad>(image.transmittance + pixel, count, 1.0f);
    Quad g_transmittance = LoadQuad<Quad>(gradient.transmittance + pixel, count, 0.0f);
    for (int c = 0; c < 3; ++c)
      g_transmittance += GetQuad<Quad>(state.color[b][c], row) * background[c];
    SetQuad(state.transmittance[b], row, t);
    SetQuad(state.behind[b], row, t * g_transmittance);
    const IntQuad last = LoadQuad<IntQuad>(image.last + pixel, count, -1);
    SetQuad(state.last[b], row, last);
    for (int i = 0; i < 4; ++i) state.last_of_block[b] = std::max(state.last_of_block[b], last[i]);
    if (kMaps >= kGeometry) {
      load(gradient.depth_sum, state.depth[b]);
      load(gradient.median_depth, state.median[b]);
      load(gradient.plane_sum, state.plane[b]);
      load3(gradient.normal_sum, state.normal[b]);
      SetQuad(state.median_index[b], row, LoadQuad<IntQuad>(image.median_index + pixel, count, -1));
    }
    if (kMaps >= kAll) {
      SetQuad(state.final_transmittance[b], row, t);
      load(gradient.distortion, state.distortion[b]);
      load(image.depth_sum, state.depth_total[b]);
    }
  });
}

template <int kMaps>
void BlendTileBackwardImpl(const Tile& tile, const Record* records, const View& view,
                           const float* background, const Image& image,
                           const ImageGradient& gradient, const PairRows& pairs) {
  constexpr int kRow = kMaps == kColor ? 16 : 32;
  constexpr int kUsed = kMaps == kColor ? kColorGradient : kAllGradient;
  constexpr int kSums = (kUsed + kLanes - 1) / kLanes * kLanes;
  BackwardState state;
  LoadTile<kMaps>(tile, view, background, image, gradient, state);
  const TileGrid grid(tile);
  // Blocks by their last hit, the latest first: each joins when the replay reaches it.
  int order[kBlocks];
  for (int b = 0; b < kBlocks; ++b) order[b] = b;
  std::sort(order, order + kBlocks,
            [&](int a, int b) { return state.last_of_block[a] > state.last_of_block[b]; });
  int joined = 0;
  uint64_t open = 0;
  for (int32_t i = tile.count - 1; i >= 0; --i) {
    while (joined < kBlocks && state.last_of_block[order[joined]] >= i)
      open |= 1ull << order[joined++];
    const int32_t id = tile.list[i];
    const Record& r = records[id];
    if (i >= 4) __builtin_prefetch(&records[tile.list[i - 4]]);
    float* row = pairs.rows + kRow * PairRow(pairs, r.box, id, tile.x / kTile, tile.y / kTile);
    Vec sums[kSums] = {};
    bool any = false;
    for (uint64_t blocks = CoveredBlocks(r.box, tile) & open; blocks; blocks &= blocks - 1) {
      const int b = __builtin_ctzll(blocks);
      Hit h;
      if (!Intersect<(kMaps >= kGeometry)>(r, grid.x[b % kBlocksX], grid.y[b / kBlocksX], view, h))
        continue;
      const Mask blend = And(h.valid, LessEqualInt(SplatInt(i), state.last[b]));
      if (!Any(blend)) continue;
      any = true;
      const Vec alpha = Keep(blend, h.alpha);
      const Vec inv = Reciprocal(1.0f - alpha);
      const Vec t = Select(blend, state.transmittance[b] * inv, state.transmittance[b]);
      const Vec w = alpha * t;
      // e: what the loss gains per unit of this hit's weight.
      Vec e = state.color[b][0] * r.s.color[0] + state.color[b][1] * r.s.color[1] +
              state.color[b][2] * r.s.color[2];
      Vec g_z = Vec{};
      if (kMaps >= kGeometry) {
        const Vec z = Keep(blend, h.z);
        e += state.normal[b][0] * r.s.normal[0] + state.normal[b][1] * r.s.normal[1] +
             state.normal[b][2] * r.s.normal[2] + state.plane[b] * r.s.plane_distance +
             state.depth[b] * z;
        g_z = w * state.depth[b] +
              Keep(And(blend, EqualInt(state.median_index[b], SplatInt(i))), state.median[b]);
        if (kMaps >= kAll) {
          const Vec alpha_front = 1.0f - t;
          const Vec alpha_behind = state.transmittance[b] - state.final_transmittance[b];
          const Vec depth_front = state.depth_total[b] - state.depth_behind[b] - w * z;
          const Vec g = state.distortion[b] * 2.0f;
          e += g * (z * (alpha_front - alpha_behind) + state.depth_behind[b] - depth_front);
          g_z += g * w * (alpha_front - alpha_behind);
          state.depth_behind[b] += w * z;
        }
      }
      const Vec g_alpha =
          Keep(And(blend, LessEqual(h.unclamped, Splat(kMaxAlpha))), t * e - state.behind[b] * inv);
      state.behind[b] += w * e;
      state.transmittance[b] = t;
      const Vec g_log_alpha =
          g_alpha * alpha;  // gradient of log alpha: of the opacity, and -2 of sigma
      const Vec g_sigma = g_log_alpha * -0.5f;
      // The disc: sigma = u^2 + v^2.
      const Vec u = Keep(h.is_disc, h.u), v = Keep(h.is_disc, h.v),
                inv_pz = Keep(h.is_disc, h.inv_pz);
      Vec g_u = g_sigma * u * 2.0f, g_v = g_sigma * v * 2.0f;
      if (kMaps >= kGeometry) {
        g_u += Keep(h.is_disc, g_z) * r.s.m2[0];
        g_v += Keep(h.is_disc, g_z) * r.s.m2[1];
        sums[kGradM2] += g_z * u;
        sums[kGradM2 + 1] += g_z * v;
        sums[kGradM2 + 2] += g_z;
        sums[kGradPlane] += w * state.plane[b];
        for (int c = 0; c < 3; ++c) sums[kGradNormal + c] += w * state.normal[b][c];
      }
      const Vec g_px = g_u * inv_pz, g_py = g_v * inv_pz, g_pz = -(g_px * u + g_py * v);
      // The screen-space filter: sigma = low_pass (dx^2 + dy^2).
      const Vec g_screen = Select(h.is_disc, Vec{}, g_sigma) * (2.0f * view.low_pass);
      const Vec g_dx = g_px * r.s.a[0] + g_py * r.s.a[1] + g_pz * r.s.a[2] + g_screen * h.dx;
      const Vec g_dy = g_px * r.s.b[0] + g_py * r.s.b[1] + g_pz * r.s.b[2] + g_screen * h.dy;
      sums[kGradA] += g_px * h.dx;
      sums[kGradA + 1] += g_py * h.dx;
      sums[kGradA + 2] += g_pz * h.dx;
      sums[kGradB] += g_px * h.dy;
      sums[kGradB + 1] += g_py * h.dy;
      sums[kGradB + 2] += g_pz * h.dy;
      sums[kGradC] += g_pz;
      sums[kGradCenter] -= g_dx;
      sums[kGradCenter + 1] -= g_dy;
      sums[kGradAbsolute] += Abs(g_dx);
      sums[kGradAbsolute + 1] += Abs(g_dy);
      sums[kGradAlpha] += g_log_alpha;
      for (int c = 0; c < 3; ++c) sums[kGradColor + c] += w * state.color[b][c];
    }
    if (any) {
      for (int group = 0; group < kSums; group += kLanes)
        Store(row + group, ReduceLanes(sums + group));
    } else {
      std::memset(row, 0, kRow * sizeof(float));
    }
  }
}

}  // namespace

void BlendTile(const Tile& tile, const Record* records, const View& view, const float* background,
               int maps, const Image& image, const PairRows* contributions) {
  auto run = [&](auto kernel) { kernel(tile, records, view, background, image, contributions); };
  if (contributions) {
    run(maps == kColor      ? BlendTileImpl<kColor, true>
        : maps == kGeometry ? BlendTileImpl<kGeometry, true>
                            : BlendTileImpl<kAll, true>);
  } else {
    run(maps == kColor      ? BlendTileImpl<kColor, false>
        : maps == kGeometry ? BlendTileImpl<kGeometry, false>
                            : BlendTileImpl<kAll, false>);
  }
}

void BlendTileBackward(const Tile& tile, const Record* records, const View& view,
                       const float* background, int maps, const Image& image,
                       const ImageGradient& gradient, const PairRows& pairs) {
  auto kernel = maps == kColor      ? BlendTileBackwardImpl<kColor>
                : maps == kGeometry ? BlendTileBackwardImpl<kGeometry>
                                    : BlendTileBackwardImpl<kAll>;
  kernel(tile, records, view, background, image, gradient, pairs);
}

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
