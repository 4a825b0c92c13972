// The photometric losses of one view with their derivatives, for a band of rows.
// losses/photometric.py defines them.
#pragma once

#include <cstdint>

#include "common/dispatch.h"

namespace cosurfgs {

struct PhotometricCall {
  int64_t height, width;
  const float *render, *alpha;  // f32[height, width, 3], canonical; f32[height, width]
  const uint8_t*
      photo;  // u8[height, width, channels]; a fourth channel is 255 times the pixel's weight
  int64_t channels;
  const bool* mask;     // bool[height, width], false = weight 0; or null
  float transform[12];  // row-major [matrix, offset], from canonical colours to the photograph's
  // What a pixel of weight 1 costs per unit of absolute difference, of 1 - SSIM (both per channel)
  // and of the squared fraction of light that passes.
  float color_scale, ssim_scale, light_scale;
  float *target, *blended;  // scratch f32[height, width, 3]: the photograph, and the render where
                            // it counts, else the photograph
  float* weights;           // scratch f32[height, width]
  float *grad_render, *grad_alpha;
  // Where every pixel counts: no weights, and the render itself is what is compared.
  bool has_weights() const { return mask || channels == 4; }
};

// What one row gives, sums over its pixels.
struct PhotometricRowSums {
  double weight, num_counted;  // those of weight above one half count for PSNR
  double similarity;           // SSIM over pixels and channels
  double difference, squared, light;
  double grad_transform[12];
};

// PhotometricScratchFloats: how many floats of scratch PhotometricRows needs.
// PrepareRow: scratch and weights of row y. All rows come before the first of the next.
// PhotometricRows: the losses and derivatives of the rows [row_begin, row_end); sums[y] becomes
// that of row y. SSIM has an 11 x 11
//   Gaussian window of sigma 1.5 with zeros outside the image, C1 = 0.01^2, C2 = 0.03^2. Rows of
//   its map that reach into the band from outside are computed again: bands exchange nothing.
// The bits of a row do not depend on the bands, so the results are the same for any number of
// threads.
COSURFGS_DECLARE_VARIANTS(int64_t PhotometricScratchFloats();
                          void PrepareRow(const PhotometricCall& call, int64_t y,
                                          PhotometricRowSums* sums);
                          void PhotometricRows(const PhotometricCall& call, int64_t row_begin,
                                               int64_t row_end, float* scratch,
                                               PhotometricRowSums* sums);)

}  // namespace cosurfgs
