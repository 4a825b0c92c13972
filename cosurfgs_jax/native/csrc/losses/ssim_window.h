// The constants of SSIM, which metrics/images.py defines: its window and what keeps its quotients
// finite.
#pragma once

#include "common/host_device.h"

namespace cosurfgs {

constexpr int kSsimRadius = 5;  // pixels
constexpr int kSsimTaps = 2 * kSsimRadius + 1;
constexpr float kSsimC1 = 1e-4f;
constexpr float kSsimC2 = 9e-4f;

// Of the Gaussian of sigma 1.5, for taps 0 to 10. A function, as device code cannot read an array
// of the host.
COSURFGS_FN constexpr float SsimWeight(int tap) {
  constexpr float kHalf[kSsimRadius + 1] = {0.00102838008f, 0.00759875814f, 0.0360007721f,
                                            0.10936069f,    0.213005538f,   0.266011725f};
  return kHalf[tap <= kSsimRadius ? tap : 2 * kSsimRadius - tap];
}

constexpr float kPhotoUnit = 1.0f / 255;  // of a photograph's bytes, colours and weights
static_assert(255 * kPhotoUnit == 1.0f, "a full weight is 1");

}  // namespace cosurfgs
