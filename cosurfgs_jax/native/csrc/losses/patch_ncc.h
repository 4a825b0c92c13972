// Normalised cross-correlation of patches that planes take from one photograph to another, and its
// derivatives.
#pragma once

#include <cstdint>

#include "common/dispatch.h"

namespace cosurfgs {

// What one call has. Images are f32[height, width]; lattice pixel (i, j) is pixel (offset_x + j
// stride, offset_y + i stride).
struct PatchCall {
  const float* gray;
  const float* neighbor;
  int64_t height, width, neighbor_height, neighbor_width;
  int64_t rows, columns, stride, offset_y, offset_x;
  int radius;
  float warp[9];     // K' R K^-1, row-major
  float epipole[3];  // K' t
  float fx, fy, cx, cy;
  float noise_variance;  // added to both variances
  // The surface that is drawn, f32[depth_height, depth_width], camera z, 0 = none: every
  // dilation-th pixel of the photograph, from (origin_x, origin_y) on, the middles of patches among
  // them. A sample weighs exp(-(t / plane_sigma)^2 / 2), t the distance in pixels of what is drawn
  // there (at the nearest drawn pixel towards the middle) from the plane that the depth has in the
  // middle. plane_sigma 0: all weigh 1.
  const float* depth;
  int64_t depth_height, depth_width, dilation, origin_y, origin_x;
  float plane_sigma;
};

constexpr int kMaxPatchRadius = 5;
constexpr float kMinPatchWeight = 10.0f;  // a patch of fewer samples is none
// The plane of the depth at a pixel: from pixels so far to either side, of one surface where their
// slopes differ by less than the smaller of them and this.
constexpr int64_t kSlopeReach = 2;
constexpr float kMaxBend = 0.5f;
// Brightness of what does not count in the neighbour. A sample that takes a two-thousandth of it is
// below kMinGray.
constexpr float kMaskedGray = -1000.0f, kMinGray = -0.5f;

// PatchRow: for row i of the lattice, planes f32[columns, 3] (inverse depth = planes . ray) to
//   score f32[columns], is_valid bool[columns], gradient f32[columns, 3] = d score / d planes; all
//   0 where the patch is not
// wholly inside both images, in front of the neighbour and where that counts, or has too little
// weight.
COSURFGS_DECLARE_VARIANTS(void PatchRow(const PatchCall& call, int64_t row, const float* planes,
                                        float* score, bool* is_valid, float* gradient);)

}  // namespace cosurfgs
