// Structural similarity of two images and its gradient, for a band of rows.
#pragma once

#include <cstdint>

#include "dispatch.h"

namespace cosurfgs {

// SsimScratchFloats: how many floats of scratch SsimRows needs for images of `channels` interleaved channels.
//
// SsimRows: the SSIM of a and b, both f32[height, width, channels] and 0 outside the image, for the band of rows
// [row_begin, row_end). Window: 11 x 11 Gaussian of sigma 1.5. C1 = 0.01^2, C2 = 0.03^2.
//   row_sums  f64[height]: element y of the band becomes the sum of row y of the map over pixels and channels.
//   gradient  f32[height, width, channels] or null: the rows of the band become scale * d(sum of the whole map)/d(a).
//             Rows of the map that reach into the band from outside are computed again: bands exchange nothing.
// The bits of a row do not depend on the bands, so the results are the same for any number of threads.
COSURFGS_DECLARE_VARIANTS(
    int64_t SsimScratchFloats(int64_t channels);
    void SsimRows(const float* a, const float* b, int64_t height, int64_t width, int64_t channels, int64_t row_begin,
                  int64_t row_end, float scale, float* scratch, double* row_sums, float* gradient);)

}  // namespace cosurfgs
