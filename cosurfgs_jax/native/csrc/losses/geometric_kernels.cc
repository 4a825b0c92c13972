// The kernels of losses/geometric_losses.h; compiled once per instruction set. Nothing from the C++
// library is used here: see losses/photometric_kernels.cc.

#include "losses/geometric_losses.h"

#include <cmath>

#include "common/vec.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {
namespace {

// Squares of lengths above it are infinite.
constexpr float kHuge = __builtin_inff();

struct Vec3 {
  float x, y, z;
};
inline Vec3 operator*(Vec3 a, float s) { return {a.x * s, a.y * s, a.z * s}; }
inline Vec3 operator-(Vec3 a, Vec3 b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
inline Vec3 operator+(Vec3 a, Vec3 b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
inline float Dot(Vec3 a, Vec3 b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
inline Vec3 Cross(Vec3 a, Vec3 b) {
  return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}
inline Vec3 Turn(const float* m, Vec3 a) {
  return {m[0] * a.x + m[1] * a.y + m[2] * a.z, m[3] * a.x + m[4] * a.y + m[5] * a.z,
          m[6] * a.x + m[7] * a.y + m[8] * a.z};
}
inline Vec3 TurnBack(const float* m, Vec3 a) {
  return {m[0] * a.x + m[3] * a.y + m[6] * a.z, m[1] * a.x + m[4] * a.y + m[7] * a.z,
          m[2] * a.x + m[5] * a.y + m[8] * a.z};
}
inline Vec3 At(const float* p) { return {p[0], p[1], p[2]}; }
inline float Sign(float x) { return float(x > 0) - float(x < 0); }

inline Vec3 Ray(const Pinhole& k, float x, float y) {
  return {(x - k.cx) / k.fx, (y - k.cy) / k.fy, 1.0f};
}

inline float SquaredSlope(const float* gray, int64_t width) {
  const float across = gray[1] - gray[-1], down = gray[width] - gray[-width];
  return across * across + down * down;
}

// A number and its derivative by the depth of the pixel that is followed.
struct Slope {
  float value, grad_depth;
};
inline Slope Divide(Slope a, Slope b) {
  const float inverse = 1.0f / b.value, q = a.value * inverse;
  return {q, (a.grad_depth - q * b.grad_depth) * inverse};
}
inline Slope Scale(Slope a, float s, float shift) {
  return {a.value * s + shift, a.grad_depth * s};
}

struct Point {
  Slope x, y, z;
};

// The neighbour's depth at (u, v), interpolated as inverse depth. Returns whether all four pixels
// around have one.
bool SampleDepth(const MultiViewCall& c, Slope u, Slope v, Slope* depth) {
  const int64_t width = c.depth_width, height = c.depth_height;
  const float x = u.value - 0.5f, y = v.value - 0.5f;
  if (!(x >= 0 && x <= float(width - 1) && y >= 0 && y <= float(height - 1))) return false;
  const int64_t left = x < float(width - 2) ? int64_t(x) : width - 2,
                top = y < float(height - 2) ? int64_t(y) : height - 2;
  const float* corner = c.neighbor_depth + top * width + left;
  if (!(corner[0] > 0 && corner[1] > 0 && corner[width] > 0 && corner[width + 1] > 0)) return false;
  const float a = 1.0f / corner[0], b = 1.0f / corner[1], d = 1.0f / corner[width],
              e = 1.0f / corner[width + 1];
  const float right = x - float(left), down = y - float(top);
  const float above = a + (b - a) * right, below = d + (e - d) * right;
  const float inverse = above + (below - above) * down;
  const float grad_x = (b - a) + ((e - d) - (b - a)) * down, grad_y = below - above;
  depth->value = 1.0f / inverse;
  depth->grad_depth =
      -(grad_x * u.grad_depth + grad_y * v.grad_depth) * depth->value * depth->value;
  return true;
}

// How far from itself a pixel lands that goes to the neighbour by its depth and comes back by the
// neighbour's.
bool ThereAndBack(const MultiViewCall& c, float x, float y, float depth, Slope* distance) {
  const Vec3 ray = Ray(c.camera, x, y);
  const Vec3 turned = Turn(c.neighbor_rotation, ray),
             there = turned * depth + At(c.neighbor_translation);
  if (!(there.z > 0)) return false;
  const Slope z{there.z, turned.z};
  const Slope across = Divide({there.x, turned.x}, z), down = Divide({there.y, turned.y}, z);
  Slope found;
  if (!SampleDepth(c, Scale(across, c.neighbor.fx, c.neighbor.cx),
                   Scale(down, c.neighbor.fy, c.neighbor.cy), &found))
    return false;
  const Vec3 point = Vec3{across.value * found.value, down.value * found.value, found.value} -
                     At(c.neighbor_translation);
  const Vec3 moved = {across.grad_depth * found.value + across.value * found.grad_depth,
                      down.grad_depth * found.value + down.value * found.grad_depth,
                      found.grad_depth};
  const Vec3 back = TurnBack(c.neighbor_rotation, point),
             back_moved = TurnBack(c.neighbor_rotation, moved);
  if (!(back.z > 0)) return false;
  const Slope u =
      Scale(Divide({back.x, back_moved.x}, {back.z, back_moved.z}), c.camera.fx, c.camera.cx);
  const Slope v =
      Scale(Divide({back.y, back_moved.y}, {back.z, back_moved.z}), c.camera.fy, c.camera.cy);
  const float dx = u.value - x, dy = v.value - y, squared = dx * dx + dy * dy;
  constexpr float kTip = 1e-8f;  // no gradient through the tip of the distance
  const float length = std::sqrt(squared > kTip ? squared : kTip);
  *distance = {length, squared > kTip ? (dx * u.grad_depth + dy * v.grad_depth) / length : 0.0f};
  return true;
}

// How squarely the blended plane at pixel i faces the camera along its ray; 0 where it is no
// surface.
inline float Facing(const PlaneDepthCall& c, int64_t i, Vec3 ray) {
  const float facing = -Dot(Turn(c.rotation, At(c.normal_sum + 3 * i)), ray),
              alpha = 1.0f - c.transmittance[i];
  return alpha >= c.min_alpha && facing >= c.min_cosine * alpha * std::sqrt(Dot(ray, ray)) ? facing
                                                                                           : 0.0f;
}

}  // namespace

void PlaneDepthRow(const PlaneDepthCall& c, int64_t y, float* plane_depth, bool* is_valid) {
  for (int64_t x = 0; x < c.width; ++x) {
    const int64_t i = y * c.width + x;
    const float facing = Facing(c, i, Ray(c.camera, float(x) + 0.5f, float(y) + 0.5f));
    is_valid[x] = facing != 0;
    plane_depth[x] = facing != 0 ? c.plane_sum[i] / facing : 0.0f;
  }
}

void PlaneDepthBackwardRow(const PlaneDepthCall& c, int64_t y, const float* cotangent,
                           float* grad_normal, float* grad_plane, double* grad_rotation) {
  float total[9] = {};
  for (int64_t x = 0; x < c.width; ++x) {
    const int64_t i = y * c.width + x;
    const Vec3 ray = Ray(c.camera, float(x) + 0.5f, float(y) + 0.5f);
    const float facing = Facing(c, i, ray), inverse = facing != 0 ? 1.0f / facing : 0.0f;
    grad_plane[x] = cotangent[x] * inverse;
    // Minus the derivative by the facing, which has a minus itself.
    const Vec3 pull = ray * (grad_plane[x] * c.plane_sum[i] * inverse),
               normal = At(c.normal_sum + 3 * i);
    const Vec3 turned = TurnBack(c.rotation, pull);
    grad_normal[3 * x] = turned.x, grad_normal[3 * x + 1] = turned.y,
                    grad_normal[3 * x + 2] = turned.z;
    total[0] += pull.x * normal.x, total[1] += pull.x * normal.y, total[2] += pull.x * normal.z;
    total[3] += pull.y * normal.x, total[4] += pull.y * normal.y, total[5] += pull.y * normal.z;
    total[6] += pull.z * normal.x, total[7] += pull.z * normal.y, total[8] += pull.z * normal.z;
  }
  for (int k = 0; k < 9; ++k) grad_rotation[k] = total[k];
}

float SteepestRow(const float* gray, int64_t width, int64_t y) {
  float steepest = 0;
  for (int64_t x = 1; x < width - 1; ++x) {
    const float squared = SquaredSlope(gray + y * width + x, width);
    steepest = squared > steepest ? squared : steepest;
  }
  return steepest;
}

double SingleViewRow(const SingleViewCall& c, int64_t y, float* const pulls[4],
                     float* grad_normal) {
  const int64_t first = y * c.width;
  const float inverse_steepest = 1.0f / (c.steepest > 1e-6f ? c.steepest : 1e-6f);
  const float ray_y = (float(y) + 0.5f - c.camera.cy) / c.camera.fy;
  const float step_x = 1.0f / c.camera.fx, step_y = 1.0f / c.camera.fy;
  double total = 0;
  for (int64_t x = 0; x < c.width; ++x) {
    const int64_t i = first + x;
    for (int k = 0; k < 4; ++k) pulls[k][x] = 0;
    for (int k = 0; k < 3; ++k) grad_normal[3 * x + k] = 0;
    if (x == 0 || x == c.width - 1) continue;
    const float right = c.depth[i + 1], left = c.depth[i - 1], below = c.depth[i + c.width],
                above = c.depth[i - c.width];
    if (!(c.depth[i] > 0 && right > 0 && left > 0 && below > 0 && above > 0)) continue;
    const float flatness = 1.0f - std::sqrt(SquaredSlope(c.gray + i, c.width)) * inverse_steepest;
    const float weight = flatness * flatness * (c.mask ? c.mask[i] : 1.0f);
    // Camera frame: points right minus left and below minus above.
    const float ray_x = (float(x) + 0.5f - c.camera.cx) / c.camera.fx;
    const Vec3 rays[4] = {{ray_x + step_x, ray_y, 1},
                          {ray_x - step_x, ray_y, 1},
                          {ray_x, ray_y + step_y, 1},
                          {ray_x, ray_y - step_y, 1}};
    const Vec3 across = rays[0] * right - rays[1] * left, down = rays[2] * below - rays[3] * above;
    const Vec3 cross = Cross(down, across);
    const float squared = Dot(cross, cross);
    if (!(squared > 0 && squared < kHuge)) continue;
    const float inverse_length = 1.0f / std::sqrt(squared);
    const Vec3 normal = cross * inverse_length, turned = TurnBack(c.rotation, normal);
    const float alpha = c.alpha[i];
    const Vec3 difference = turned * alpha - At(c.normal + 3 * i);
    total += double(weight *
                    (std::fabs(difference.x) + std::fabs(difference.y) + std::fabs(difference.z)));
    const float factor = weight * c.scale;
    const Vec3 signs = Vec3{Sign(difference.x), Sign(difference.y), Sign(difference.z)} * factor;
    grad_normal[3 * x] = -signs.x, grad_normal[3 * x + 1] = -signs.y,
                    grad_normal[3 * x + 2] = -signs.z;
    const Vec3 grad_unit = Turn(c.rotation, signs * alpha);
    const Vec3 grad_cross = (grad_unit - normal * Dot(normal, grad_unit)) * inverse_length;
    const Vec3 grad_down = Cross(across, grad_cross), grad_across = Cross(grad_cross, down);
    pulls[0][x] = Dot(grad_across, rays[0]);
    pulls[1][x] = -Dot(grad_across, rays[1]);
    pulls[2][x] = Dot(grad_down, rays[2]);
    pulls[3][x] = -Dot(grad_down, rays[3]);
  }
  return total;
}

void GatherRow(const float* pulls, int64_t height, int64_t width, int64_t y, float* grad_depth) {
  const int64_t size = height * width;
  const float *right = pulls + y * width, *left = right + size;
  for (int64_t x = 0; x < width; ++x) {
    grad_depth[x] = (x > 0 ? right[x - 1] : 0.0f) + (x + 1 < width ? left[x + 1] : 0.0f);
  }
  if (y > 0) {
    const float* lower = pulls + 2 * size + (y - 1) * width;
    for (int64_t x = 0; x < width; ++x) grad_depth[x] += lower[x];
  }
  if (y + 1 < height) {
    const float* upper = pulls + 3 * size + (y + 1) * width;
    for (int64_t x = 0; x < width; ++x) grad_depth[x] += upper[x];
  }
}

void MultiViewRow(const MultiViewCall& c, int64_t row, MultiViewRowResult* result) {
  const PatchCall& patch = c.patch;
  const int64_t y = patch.offset_y + row * patch.stride;
  const int64_t first = (c.offset_y + row * c.stride) * c.width + c.offset_x;
  result->geometric = result->photometric = 0;
  result->num_geometric = result->num_photometric = 0;
  for (int64_t j = 0; j < patch.columns; ++j) {
    const int64_t x = patch.offset_x + j * patch.stride, i = first + j * c.stride;
    const float depth = c.depth[i], pixel_x = float(x) + 0.5f, pixel_y = float(y) + 0.5f;
    Slope phi;
    const bool counts = depth > 0 && (!c.mask || c.mask[i] > 0.5f) &&
                        ThereAndBack(c, pixel_x, pixel_y, depth, &phi) &&
                        phi.value < c.max_reprojection;
    result->counts_geometric[j] = counts;
    result->grad_depth[j] = 0;
    float* plane = result->planes + 3 * j;
    plane[0] = plane[1] = plane[2] = 0;  // no patch is taken there
    if (!counts) continue;
    const float factor = std::exp(-phi.value);  // without gradient
    result->geometric += double(factor * phi.value);
    result->grad_depth[j] = factor * phi.grad_depth;
    ++result->num_geometric;
    const Vec3 normal = Turn(c.rotation, At(c.normal + 3 * i));
    const float inverse = 1.0f / (Dot(normal, Ray(c.camera, pixel_x, pixel_y)) * depth);
    plane[0] = normal.x * inverse, plane[1] = normal.y * inverse, plane[2] = normal.z * inverse;
  }
  PatchRow(patch, row, result->planes, result->score, result->is_inside, result->grad_planes);
  for (int64_t j = 0; j < patch.columns; ++j) {
    const float score = result->score[j], dissimilarity = 1.0f - score * score;
    const bool counts = result->counts_geometric[j] && result->is_inside[j] && score > 0 &&
                        dissimilarity < c.max_dissimilarity;
    result->counts_photometric[j] = counts;
    if (!counts) continue;
    result->photometric += double(dissimilarity);
    ++result->num_photometric;
  }
}

void SpreadRow(const MultiViewCall& c, int64_t row, const MultiViewRowResult& result,
               float geometric_factor, float photometric_factor, float* grad_depth,
               float* grad_normal) {
  const PatchCall& patch = c.patch;
  const int64_t y = patch.offset_y + row * patch.stride;
  const int64_t first = (c.offset_y + row * c.stride) * c.width + c.offset_x;
  for (int64_t j = 0; j < patch.columns; ++j) {
    const int64_t x = patch.offset_x + j * patch.stride, i = first + j * c.stride;
    if (result.counts_geometric[j]) grad_depth[i] += geometric_factor * result.grad_depth[j];
    if (!result.counts_photometric[j]) continue;
    // plane = normal / (normal . ray depth)
    const Vec3 normal = Turn(c.rotation, At(c.normal + 3 * i)),
               ray = Ray(c.camera, float(x) + 0.5f, float(y) + 0.5f);
    const float depth = c.depth[i], facing = Dot(normal, ray), inverse = 1.0f / (facing * depth);
    const Vec3 grad_plane =
        At(result.grad_planes + 3 * j) * (-2.0f * result.score[j] * photometric_factor);
    grad_depth[i] -= Dot(grad_plane, normal) * inverse / depth;
    const Vec3 pull =
        TurnBack(c.rotation, (grad_plane - ray * (Dot(grad_plane, normal) / facing)) * inverse);
    grad_normal[3 * i] += pull.x, grad_normal[3 * i + 1] += pull.y,
        grad_normal[3 * i + 2] += pull.z;
  }
}

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
