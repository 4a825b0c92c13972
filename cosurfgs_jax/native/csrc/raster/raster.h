// What the handlers (raster/raster_handlers.cc), the CPU kernels (raster/project_kernels.cc,
// raster/blend_kernels.cc; one copy per instruction set) and the GPU kernels (gpu/*.h) share.
//
// In backward passes g_x is the derivative of the loss by x (in Python grad_x); g alone is that of
// what the function returned.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/constants.h"
#include "common/dispatch.h"
#include "common/host_device.h"
#include "raster/surfel_types.h"

namespace cosurfgs {

// A camera from the operands f32[4,4] and f32[3,3] of one view.
static COSURFGS_FN View MakeView(const float* camera_from_world, const float* intrinsics,
                                 int64_t width, int64_t height, float near, float low_pass,
                                 bool orthographic) {
  View view;
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) view.rotation[3 * i + j] = camera_from_world[4 * i + j];
    view.translation[i] = camera_from_world[4 * i + 3];
  }
  for (int j = 0; j < 3; ++j) {
    view.center[j] = 0.0f;
    for (int i = 0; i < 3; ++i) view.center[j] -= view.rotation[3 * i + j] * view.translation[i];
  }
  view.fx = intrinsics[0];
  view.cx = intrinsics[2];
  view.fy = intrinsics[4];
  view.cy = intrinsics[5];
  view.width = static_cast<int>(width);
  view.height = static_cast<int>(height);
  view.near = near;
  view.low_pass = low_pass;
  view.is_orthographic = orthographic;
  return view;
}

// Pixels that a surfel may cover, inclusive.
struct Box {
  int16_t x0, x1, y0, y1;
  COSURFGS_FN int tile_x0() const { return x0 / kTile; }
  COSURFGS_FN int tile_x1() const { return x1 / kTile; }
  COSURFGS_FN int tile_y0() const { return y0 / kTile; }
  COSURFGS_FN int tile_y1() const { return y1 / kTile; }
};

// What blending reads of one surfel: Projected<float> plus what depends on it. One or two cache
// lines.
struct alignas(64) Record {
  Projected<float> s;
  float cutoff;  // sigma at which alpha falls below kMinAlpha
  Box box;
  int32_t may_be_near;  // whether a hit within the cut-off may be nearer than `near`
};
constexpr int kRecordBytes = 96;  // that are used
static_assert(sizeof(Record) == 128 && offsetof(Record, may_be_near) + 4 == kRecordBytes,
              "two cache lines");

enum class CullStatus : uint8_t { kDrawn, kHidden, kInvalid };

// How much is computed, in the order of RenderOutput's groups.
enum Maps : int { kColor = 0, kGeometry = 1, kAll = 2 };

// The image-sized maps of one view, row-major; those that `maps` leaves out are not touched.
struct Image {
  float *color, *transmittance;
  float *depth_sum, *median_depth, *normal_sum, *plane_sum;
  float* distortion;
  int32_t *last, *median_index;  // position in the tile's list of the last blended hit and of the
                                 // median hit, or -1
};
// Gradients with respect to the maps; median_depth etc. as above.
struct ImageGradient {
  const float *color, *transmittance, *depth_sum, *median_depth, *normal_sum, *plane_sum,
      *distortion;
};

// The work of one tile.
struct Tile {
  int x, y;             // first pixel
  const int32_t* list;  // indices into records, front to back
  int32_t count;
};

// Where results per (surfel, tile) pair go: the rows of a surfel are consecutive, tile row by
// tile row of the band.
struct PairRows {
  float* rows;
  const int64_t* offset;  // per record, of the current band
  int first_tile_row;     // of the band
};
static COSURFGS_FN int64_t PairRow(const PairRows& pairs, const Box& box, int32_t id, int tile_x,
                                   int tile_y) {
  const int first = box.tile_y0() > pairs.first_tile_row ? box.tile_y0() : pairs.first_tile_row;
  return pairs.offset[id] + int64_t(tile_y - first) * (box.tile_x1() - box.tile_x0() + 1) +
         (tile_x - box.tile_x0());
}

// Gradient rows: the fields in this order. With kColor the first kColorGradient are written.
enum GradientSlot : int {
  kGradA = 0,
  kGradB = 3,
  kGradC = 6,
  kGradCenter = 7,
  kGradAbsolute = 9,
  kGradAlpha = 11,
  kGradColor = 12,
  kColorGradient = 15,
  kGradM2 = 15,
  kGradNormal = 18,
  kGradPlane = 21,
  kAllGradient = 22
};
// Rows of BlendTileRemoval: sum w, and the sum of squared changes without the surfel. In the order
// of the fields of `Removal` (raster/rasterizer.py).
enum RemovalSlot : int { kRemovalWeights = 0, kRemovalEffects = 1, kRemoval = 2 };
constexpr int kContributions = 4;  // sum w, max w, pixels, pixels blended while T > 0.5

// Memory for the hits of a tile, block by block, on the way from front to back. A pixel takes at
// most kMaxHits: each takes 1/255 of the light or more, until 1e-4 is left.
constexpr int kMaxHits = 2400;
struct HitMemory {
  float* numbers;   // two vectors a hit
  uint16_t* where;  // its block, and the surfel's place in its chunk
  int32_t* ends;    // of the hits of each chunk

  // For a tile of `count` surfels, whatever the number of blocks and lanes.
  static int64_t num_numbers(int64_t count) {
    const int64_t pixels = kTile * kTile, most = pixels * kMaxHits * 16;
    return 2 * (count * pixels < most ? count * pixels : most);
  }
  static int64_t num_hits(int64_t count) {
    const int64_t most = int64_t(kTile) * kTile * kMaxHits;
    return count * 64 < most ? count * 64 : most;
  }
};

// Tiles that the box touches in tile rows [first_tile_row, end_tile_row).
static COSURFGS_FN int64_t PairsInRows(const Box& box, int first_tile_row, int end_tile_row) {
  const int y0 = box.tile_y0() > first_tile_row ? box.tile_y0() : first_tile_row;
  const int y1 = box.tile_y1() < end_tile_row ? box.tile_y1() : end_tile_row - 1;
  return y1 < y0 ? 0 : int64_t(y1 - y0 + 1) * (box.tile_x1() - box.tile_x0() + 1);
}

// Rows are padded to a whole number of any variant's vectors.
static inline int GradientRowSize(int maps) { return maps == kColor ? 16 : 32; }

COSURFGS_DECLARE_VARIANTS(
    // Projects surfels [begin, end): writes records, depths (camera z) and statuses.
    void ProjectSurfels(const Surfels& surfels, const View& view, int64_t begin, int64_t end,
                        Record* records, float* depths, CullStatus* statuses);
    // Blends one tile. contributions (may be null) get kContributions floats per pair.
    void BlendTile(const Tile& tile, const Record* records, const View& view,
                   const float* background, int maps, const Image& image,
                   const PairRows* contributions);
    // What removing a surfel changes in one tile: kRemoval floats per pair.
    void BlendTileRemoval(const Tile& tile, const Record* records, const View& view,
                          const float* background, const HitMemory& memory, const PairRows& rows);
    // Gradients of one tile's pairs.
    void BlendTileBackward(const Tile& tile, const Record* records, const View& view,
                           const float* background, int maps, const Image& image,
                           const ImageGradient& gradient, const PairRows& pairs);
    // From the summed pair gradients (`rows`, GradientRowSize each, for ids[begin, end)) to the
    // surfels; adds the camera's gradient (9 rotation, 3 translation) to `camera`.
    void ProjectBackward(const Surfels& surfels, const View& view, const int32_t* ids,
                         int64_t begin, int64_t end, const float* rows, int row_size,
                         const SurfelGradients& out, double* camera);)

}  // namespace cosurfgs
