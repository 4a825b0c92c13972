// SV-Reg and MV-Reg of one view with their derivatives, row by row. losses/single_view.py and
// losses/multi_view.py define them.
#pragma once

#include <cstdint>

#include "common/dispatch.h"
#include "losses/patch_ncc.h"

namespace cosurfgs {

struct Pinhole {
  float fx, fy, cx, cy;
};

// What SV-Reg of one view needs.
struct SingleViewCall {
  int64_t height, width;
  const float *depth, *normal, *alpha,
      *gray;          // f32[height, width]; normal f32[height, width, 3], world
  const float* mask;  // f32[height, width], or null
  float rotation[9];  // camera_from_world, row-major
  Pinhole camera;
  float steepest;  // largest slope of the image, see SteepestRow
  float scale;     // weight of the term over the number of pixels
};

// What MV-Reg of one view needs. The lattice is that of `patch`: its pixel (i, j) is pixel
// (patch.offset_x + j patch.stride, patch.offset_y + i patch.stride) of the photograph, and pixel
// (offset_x + j stride, offset_y + i stride) of the maps, which may have fewer pixels.
struct MultiViewCall {
  PatchCall patch;
  int64_t width, stride, offset_y, offset_x;  // of the maps
  int64_t depth_height, depth_width;          // of the neighbour's depth
  const float *depth, *normal, *mask, *neighbor_depth;
  float rotation[9];                                    // camera_from_world of the view
  float neighbor_rotation[9], neighbor_translation[3];  // neighbor_from_view
  Pinhole camera, neighbor;  // of the photograph, and of the neighbour's depth
  float max_reprojection, max_dissimilarity;
};

// What a row of the lattice gives; arrays of `columns`, gradients before they are divided by the
// counts.
struct MultiViewRowResult {
  float *planes, *score, *grad_planes;  // planes and grad_planes [columns, 3]
  bool *is_inside, *counts_geometric, *counts_photometric;
  float* grad_depth;  // of the geometric term
  double geometric, photometric;
  int64_t num_geometric, num_photometric;
};

// What plane depth needs. Sums along the rays of one view, see raster/outputs.py.
struct PlaneDepthCall {
  int64_t width;
  const float *normal_sum, *plane_sum,
      *transmittance;  // f32[height, width]; normal_sum f32[height, width, 3], world
  float rotation[9];   // camera_from_world, row-major
  Pinhole camera;
  float min_alpha, min_cosine;
};

// PlaneDepthRow: plane depth f32[width] of row y and whether it is one; 0 where it is not.
// PlaneDepthBackwardRow: from the cotangents f32[width] of the row the derivatives by its sums, and
// those by the rotation f64[9]. SteepestRow: the largest squared slope 4 |grad gray|^2 in row y.
// SingleViewRow: the sum over row y of the weighted differences. grad_normal f32[width, 3] and
// pulls become the derivatives, times
//   `scale`: pulls[k][x] is the one to the depth of the right (0), left (1), lower (2) and upper
//   (3) neighbour of pixel x.
// GatherRow: grad_depth f32[width] of row y from the pulls of rows y - 1 to y + 1, each f32[4,
// height, width]. MultiViewRow: both terms on a row of the lattice. SpreadRow: adds the row's
// gradients, times these factors, to grad_depth and grad_normal of the whole image.
COSURFGS_DECLARE_VARIANTS(
    void PlaneDepthRow(const PlaneDepthCall& call, int64_t y, float* plane_depth, bool* is_valid);
    void PlaneDepthBackwardRow(const PlaneDepthCall& call, int64_t y, const float* cotangent,
                               float* grad_normal, float* grad_plane, double* grad_rotation);
    float SteepestRow(const float* gray, int64_t width, int64_t y);
    double SingleViewRow(const SingleViewCall& call, int64_t y, float* const pulls[4],
                         float* grad_normal);
    void GatherRow(const float* pulls, int64_t height, int64_t width, int64_t y, float* grad_depth);
    void MultiViewRow(const MultiViewCall& call, int64_t row, MultiViewRowResult* result);
    void SpreadRow(const MultiViewCall& call, int64_t row, const MultiViewRowResult& result,
                   float geometric_factor, float photometric_factor, float* grad_depth,
                   float* grad_normal);)

}  // namespace cosurfgs
