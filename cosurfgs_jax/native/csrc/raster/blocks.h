// The blocks of a tile, and a surfel at the pixels of one: what the kernels that walk through the
// hits of a tile share. Included only by files that are compiled once per instruction set.
//
// A tile of 16x16 pixels is cut into blocks of one vector each: 4 pixels wide, kLanes / 4 high. A
// surfel visits only the blocks that its box touches and that still let light through, so small
// surfels cost a few blocks and a finished tile costs nothing.
#pragma once

#include <algorithm>

#include "common/vec.h"
#include "raster/raster.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {

constexpr int kBlockWidth = 4, kBlockHeight = kLanes / kBlockWidth;
constexpr int kBlocksX = kTile / kBlockWidth, kBlocksY = kTile / kBlockHeight,
              kBlocks = kBlocksX * kBlocksY;

// Pixel centres of a tile's blocks, and which of their pixels lie in the image.
struct TileGrid {
  Vec x[kBlocksX], y[kBlocksY];
  TileGrid(const Tile& tile) {
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int b = 0; b < kBlocksX; ++b)
        x[b][lane] = tile.x + b * kBlockWidth + lane % kBlockWidth + 0.5f;
      for (int b = 0; b < kBlocksY; ++b)
        y[b][lane] = tile.y + b * kBlockHeight + lane / kBlockWidth + 0.5f;
    }
  }
};

// One bit per block that the box touches.
inline uint64_t CoveredBlocks(const Box& r, const Tile& tile) {
  const int bx0 = std::max(0, r.x0 - tile.x) / kBlockWidth,
            bx1 = std::min(kTile - 1, r.x1 - tile.x) / kBlockWidth;
  const int by0 = std::max(0, r.y0 - tile.y) / kBlockHeight,
            by1 = std::min(kTile - 1, r.y1 - tile.y) / kBlockHeight;
  const uint64_t columns = ((2ull << bx1) - (1ull << bx0)) & 0xf;
  const uint64_t below = by1 == 15 ? ~0ull : (1ull << (4 * (by1 + 1))) - 1;
  return columns * 0x1111111111111111ull & below & ~((1ull << (4 * by0)) - 1);
}

// Surfels are taken in chunks whose records stay in L1; in a chunk, each block goes through the
// surfels that touch it with its state in registers.
constexpr int kChunk = 128;  // 16 KB of records

// Which surfels of a chunk touch which block, front to back.
struct BlockLists {
  uint8_t of[kBlocks][kChunk];
  int counts[kBlocks];

  // Surfels [first, first + size) of the tile, and those blocks that are open.
  void Fill(const Tile& tile, const Record* records, int32_t first, int32_t size, uint64_t open) {
    const int32_t* ids = tile.list + first;
    std::fill(counts, counts + kBlocks, 0);
    for (int32_t i = 0; i < size; ++i) {
      __builtin_prefetch(&records[ids[i]]);
      if (i + 8 < size) __builtin_prefetch(&records[ids[i + 8]].box);
      for (uint64_t blocks = CoveredBlocks(records[ids[i]].box, tile) & open; blocks;
           blocks &= blocks - 1) {
        const int b = __builtin_ctzll(blocks);
        of[b][counts[b]++] = uint8_t(i);
      }
    }
  }
};

// One hit of a surfel on the pixels of a block.
struct Hit {
  Vec dx, dy, u, v, inv_pz, alpha, unclamped, z;
  Mask is_disc, valid;
};

// False if no pixel of the block is reached. Without kWithDepth z is only set where it may be too
// near.
template <bool kWithDepth>
inline bool Intersect(const Record& r, Vec x, Vec y, const View& view, Hit& h) {
  const auto& s = r.s;
  h.dx = x - s.center[0];
  h.dy = y - s.center[1];
  const Vec px = h.dx * s.a[0] + h.dy * s.b[0];
  const Vec py = h.dx * s.a[1] + h.dy * s.b[1];
  const Vec pz = h.dx * s.a[2] + (h.dy * s.b[2] + s.c);
  h.inv_pz = Reciprocal(pz);
  h.u = px * h.inv_pz;
  h.v = py * h.inv_pz;
  const Vec sigma_disc = h.u * h.u + h.v * h.v;
  const Vec sigma_screen = (h.dx * h.dx + h.dy * h.dy) * view.low_pass;
  h.is_disc = LessEqual(
      sigma_disc, sigma_screen);  // false where the ray lies in the disc's plane: NaN or infinity
  const Vec sigma = Select(h.is_disc, sigma_disc, sigma_screen);
  if (!Any(LessEqual(sigma, Splat(r.cutoff)))) return false;
  h.unclamped = ExpMinusHalf(sigma) * s.opacity;
  h.alpha = Min(h.unclamped, Splat(kMaxAlpha));
  h.valid = LessEqual(Splat(kMinAlpha), h.alpha);
  if (kWithDepth || r.may_be_near) {
    h.z = Select(h.is_disc, h.u * s.m2[0] + (h.v * s.m2[1] + s.m2[2]), Splat(s.m2[2]));
    if (r.may_be_near) h.valid = And(h.valid, LessEqual(Splat(view.near), h.z));
  }
  return true;
}

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
