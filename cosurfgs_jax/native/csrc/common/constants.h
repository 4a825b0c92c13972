// The constants of the rasterizer, with those of raster/reference.py, tile_backend.py and
// projection.py (tests/component/test_shared_constants.py).
#pragma once

namespace cosurfgs {

constexpr int kTile = 16;                   // pixels, square
constexpr float kMinAlpha = 1.0f / 255.0f;  // fainter hits are skipped
constexpr float kMaxAlpha = 0.99f;          // no gradient above
constexpr float kMinTransmittance = 1e-4f;  // a hit that would take T below this stops the pixel
constexpr float kMedianTransmittance = 0.5f;
constexpr float kMaxLength =
    1e9f;  // world; larger means and scales are taken for broken: their squares overflow
constexpr float kMaxValue =
    1e6f;  // of a logit, and of the length of all coefficients of a colour; more is as broken
constexpr float kMinQuat2 = 1e-24f;  // squared length of a quaternion; less has no direction
constexpr float kBoxMargin = 0.01f;  // pixels, for rounding in the bounds

}  // namespace cosurfgs
