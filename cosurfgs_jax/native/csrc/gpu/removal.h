// What one GPU block does for one tile to sum up how much its pixels change without each surfel.
// The same formulas as raster/removal_kernels.cc for one pixel, but the hits are not noted: the
// pixels go to their last hits first, and replay them as in the backward pass (gpu/blend.h).
#pragma once

#include "gpu/blend.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {

// Rows that no pixel adds to are not written: they must be zero before.
struct BlendTileRemovalBlock {
  using Args = BlendArgs;
  static constexpr int kThreads = kTileThreads, kMinBlocks = 8;
  static constexpr int kBatch = 32;
  struct Pixel {
    float y;              // of its centre; NaN if it takes no (more) hits
    float transmittance;  // behind the surfels met, or not replayed, so far
    float behind[3];      // the colour behind the surfels replayed so far
    int32_t last;
  };
  struct State {
    float x;
    Pixel pixels[kPixels];
  };
  struct Shared {
    Batch<kBatch> batch;
    int32_t last;  // of any pixel of the tile
    Slab<kBatch, kRemoval> slab;
  };

  COSURFGS_FN static void PlacePixels(const ThreadPixels& at, State& state) {
    state.x = at.center_x();
    for (int p = 0; p < kPixels; ++p) state.pixels[p].y = at.is_inside(p) ? at.center_y(p) : NAN;
  }
  COSURFGS_FN static void StartPixels(const Args& args, const ThreadPixels& at, State& state) {
    PlacePixels(at, state);
    for (int p = 0; p < kPixels; ++p) {
      Pixel& pixel = state.pixels[p];
      pixel.transmittance = 1.0f;
      pixel.last = -1;
      for (int c = 0; c < 3; ++c) pixel.behind[c] = args.background[c];
    }
  }
  COSURFGS_FN static bool IsActive(const State& state) {
    bool is_active = false;
    for (int p = 0; p < kPixels; ++p)
      is_active = is_active || state.pixels[p].y == state.pixels[p].y;
    return is_active;
  }
  COSURFGS_FN static int32_t Last(const State& state) {
    int32_t last = -1;
    for (int p = 0; p < kPixels; ++p)
      last = state.pixels[p].last > last ? state.pixels[p].last : last;
    return last;
  }

  // Whether a pixel of the thread is hit.
  COSURFGS_FN static bool Meet(const Visited& r, float low_pass, const State& state, Hits& hits) {
    const Column column(r.s, state.x);
    bool is_hit = false;
    COSURFGS_UNROLL
    for (int p = 0; p < kPixels; ++p) {
      hits.of[p] = Intersect<false>(r, column, state.pixels[p].y, low_pass);
      is_hit = is_hit | hits.of[p].is_hit;
    }
    return is_hit;
  }

  // On the way from front to back; the hit that stops the pixel is the first that lies behind.
  COSURFGS_FN static void Take(const Visited& r, const Hit& h, const float* background,
                               int32_t index, Pixel& pixel) {
    const float t = pixel.transmittance, t_after = t - t * h.alpha;
    const bool stops = h.is_hit & (t_after < kMinTransmittance);
    const bool is_blended = h.is_hit & !stops;
    pixel.y = stops ? NAN : pixel.y;
    pixel.transmittance = is_blended ? t_after : t;
    pixel.last = is_blended ? index : pixel.last;
    for (int c = 0; c < 3; ++c) {
      const float first = Fma(h.alpha, r.s.color[c] - background[c], background[c]);
      pixel.behind[c] = stops ? first : pixel.behind[c];
    }
  }

  // From back to front. Where the pixel was not hit its alpha is 0, and so is all that is added.
  COSURFGS_FN static void Replay(const Visited& r, const Hit& h, Pixel& pixel, float* values) {
    const float alpha = h.is_hit ? h.alpha : 0.0f;
    const float inv = FastReciprocal(1.0f - alpha);
    // Selected, as the reciprocal of 1 need not be 1.
    const float t = h.is_hit ? pixel.transmittance * inv : pixel.transmittance, w = alpha * t;
    float squared = 0.0f;
    for (int c = 0; c < 3; ++c) {
      const float difference = r.s.color[c] - pixel.behind[c];
      squared = Fma(difference, difference, squared);
      pixel.behind[c] = Fma(alpha, difference, pixel.behind[c]);
    }
    pixel.transmittance = t;
    values[kRemovalWeights] += w;
    values[kRemovalEffects] = Fma(w * w, squared, values[kRemovalEffects]);
  }

  template <class Block>
  COSURFGS_BLOCK_FN static void TakeAll(Block& block, const Args& args, const TilePlace& tile) {
    Shared& shared = block.shared();
    const int64_t begin = args.tile_begin[tile.index], end = args.tile_begin[tile.index + 1];
    for (int64_t first = begin; first < end; first += kBatch) {
      if (block.None([](const State& state) { return IsActive(state); })) break;
      const int size = int(end - first < kBatch ? end - first : kBatch);
      const int32_t position = int32_t(first - begin);  // in the tile's list
      block.Each([&](int thread, State&) {
        CopyBatch(args, tile, first, size, thread, shared.batch,
                  [](const Box&, int32_t) -> float* { return nullptr; });
      });
      block.Visit(
          shared.batch.patches, Order::kForward,
          [size](const State& state) { return IsActive(state) ? size : 0; },
          [&](const State& state, int i, Hits& hits) {
            return Meet(shared.batch.surfels[i], args.low_pass, state, hits);
          },
          [&](State& state, int i, const Hits& hits) {
            COSURFGS_UNROLL
            for (int p = 0; p < kPixels; ++p) {
              Take(shared.batch.surfels[i], hits.of[p], args.background, position + i,
                   state.pixels[p]);
            }
          });
    }
  }

  template <class Block>
  COSURFGS_BLOCK_FN static void Run(Block& block, const Args& args, int64_t index) {
    Shared& shared = block.shared();
    const TilePlace tile(args, index);
    const int64_t begin = args.tile_begin[tile.index];
    block.Each([&](int thread, State& state) {
      if (thread == 0) shared.last = -1;
      StartPixels(args, ThreadPixels(args, tile, thread), state);
    });
    TakeAll(block, args, tile);
    block.Each([&](int thread, State& state) {
      PlacePixels(ThreadPixels(args, tile, thread), state);
      AtomicMax(&shared.last, Last(state));
    });
    // Positions [first, first + size) of the tile's list, from the back.
    const int32_t count = shared.last + 1;
    for (int32_t end = count; end > 0; end -= kBatch) {
      const int32_t first = end > kBatch ? end - kBatch : 0, size = end - first;
      block.Each([&](int thread, State&) {
        CopyBatch(args, tile, begin + first, size, thread, shared.batch,
                  [&](const Box& box, int32_t id) {
                    return args.rows.rows + kRemoval * PairRow(args.rows, box, id, tile.x, tile.y);
                  });
      });
      block.template Rows<Sum>(
          shared.batch.patches, shared.slab, Order::kBackward,
          [&](const State& state) {
            return Last(state) + 1 - first < size ? Last(state) + 1 - first : size;
          },
          [&](const State& state, int i, Hits& hits) {
            bool is_hit = Meet(shared.batch.surfels[i], args.low_pass, state, hits);
            COSURFGS_UNROLL
            for (int p = 0; p < kPixels; ++p)
              hits.of[p].is_hit = hits.of[p].is_hit & (first + i <= state.pixels[p].last);
            return is_hit;
          },
          [&](State& state, int i, const Hits& hits, const bool*, float* values) {
            values[0] = values[1] = 0.0f;
            COSURFGS_UNROLL
            for (int p = 0; p < kPixels; ++p)
              Replay(shared.batch.surfels[i], hits.of[p], state.pixels[p], values);
          });
      block.Each([&](int thread, State&) {
        ReadSlab<Sum>(shared.slab, size, thread,
                      [&](int i, int k, float value) { shared.batch.rows[i][k] = value; });
      });
    }
  }
};

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
