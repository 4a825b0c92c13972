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
};

constexpr int kMaxPatchRadius = 5;
// Brightness of what does not count in the neighbour. A sample that takes a two-thousandth of it is
// below kLeastGray.
constexpr float kMaskedGray = -1000.0f, kLeastGray = -0.5f;

// PatchRow: for row i of the lattice, planes f32[columns, 3] (inverse depth = planes . ray) to
//   score f32[columns], is_valid bool[columns], gradient f32[columns, 3] = d score / d planes; all
//   0 where the patch is not
// wholly inside both images, in front of the neighbour and where that counts.
COSURFGS_DECLARE_VARIANTS(void PatchRow(const PatchCall& call, int64_t row, const float* planes,
                                        float* score, bool* is_valid, float* gradient);)

}  // namespace cosurfgs
