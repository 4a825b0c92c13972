// Scenes for the program of checks: made from a hash, so that every machine has the same ones, and
// what comes out of drawing them.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "raster/raster.h"

namespace cosurfgs {
namespace program {

// A number in [0, 1) for each (stream, index).
inline float Uniform(uint32_t stream, uint64_t index) {
  uint64_t x = index * 0x9e3779b97f4a7c15ull + (uint64_t(stream) + 1) * 0xd1b54a32d192ed03ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return float((x ^ (x >> 31)) >> 40) * (1.0f / 16777216.0f);
}
inline float Between(uint32_t stream, uint64_t index, float low, float high) {
  return low + (high - low) * Uniform(stream, index);
}

struct Scene {
  int width, height, num_sh, sh_degree;
  int64_t num_surfels, num_views;
  float near, low_pass, background[3];
  std::vector<float> means, quats, log_scales, logit_opacities, sh;
  std::vector<uint8_t> alive;
  std::vector<float> cameras, intrinsics;
  int32_t num_invalid;  // that are alive and broken

  int64_t pixels() const { return int64_t(width) * height; }
};

struct SceneShape {
  int64_t num_surfels;
  int width, height;
  int num_views = 1;
  float min_pixels = 0.4f, max_pixels = 12.0f;  // standard deviations of surfels
  bool has_oddities = true;                     // see MakeOdd
};

inline void MakeCameras(Scene& scene) {
  for (int v = 0; v < scene.num_views; ++v) {
    const float angle = 0.12f * v, c = std::cos(angle), s = std::sin(angle),
                focal = 0.9f * scene.width;
    const float camera[16] = {c,  0, s, -0.3f * v, 0, 1, 0, 0.1f * v,
                              -s, 0, c, 0.2f * v,  0, 0, 0, 1};
    const float intrinsics[9] = {
        focal, 0, 0.5f * scene.width + 0.3f, 0, 1.05f * focal, 0.5f * scene.height, 0, 0, 1};
    scene.cameras.insert(scene.cameras.end(), camera, camera + 16);
    scene.intrinsics.insert(scene.intrinsics.end(), intrinsics, intrinsics + 9);
  }
}

// Surfels that need a thought: one that covers the image, one that crosses the camera's plane, dead
// ones, and broken ones, which are drawn as if they were dead and counted.
inline void MakeOdd(Scene& scene) {
  const int64_t n = scene.num_surfels;
  const float nan = std::numeric_limits<float>::quiet_NaN(),
              infinity = std::numeric_limits<float>::infinity();
  const auto place = [&](int64_t id, float z, float log_scale) {
    if (id >= n) return;
    const float mean[3] = {0.1f, -0.1f, z}, quat[4] = {1.0f, 0.1f, 0.05f, 0.0f};
    for (int i = 0; i < 3; ++i) scene.means[3 * id + i] = mean[i];
    for (int i = 0; i < 4; ++i) scene.quats[4 * id + i] = quat[i];
    for (int i = 0; i < 2; ++i) scene.log_scales[2 * id + i] = log_scale;
    scene.logit_opacities[id] = -1.0f;
  };
  place(0, 9.0f, 3.0f);
  place(1, 0.3f, 1.0f);
  for (int64_t id = 2; id < n; ++id) {
    if (id % 37 == 0) scene.alive[id] = 0;
    if (id % 101 != 5) continue;
    switch (id / 101 % 4) {
      case 0:
        scene.means[3 * id + 1] = nan;
        break;
      case 1:
        scene.sh[3 * scene.num_sh * id] = infinity;
        break;
      case 2:
        for (int i = 0; i < 4; ++i) scene.quats[4 * id + i] = 0.0f;
        break;
      default:
        scene.log_scales[2 * id] = 80.0f;
    }
    scene.num_invalid += scene.alive[id];
  }
}

inline Scene MakeScene(const SceneShape& shape) {
  Scene scene{};
  scene.width = shape.width;
  scene.height = shape.height;
  scene.num_sh = 16;
  scene.sh_degree = 3;
  scene.num_surfels = shape.num_surfels;
  scene.num_views = shape.num_views;
  scene.near = 0.2f;
  scene.low_pass = 2.0f;
  for (int i = 0; i < 3; ++i) scene.background[i] = 0.2f + 0.3f * i;
  MakeCameras(scene);
  const float focal = scene.intrinsics[0];
  for (int64_t i = 0; i < shape.num_surfels; ++i) {
    const float z =
        Between(0, i, -1.0f, 14.0f);  // some lie behind the camera, some outside of the picture
    scene.means.push_back(Between(1, i, -0.65f, 0.65f) * std::fabs(z));
    scene.means.push_back(Between(2, i, -0.65f, 0.65f) * std::fabs(z) * shape.height / shape.width);
    scene.means.push_back(z);
    for (int k = 0; k < 4; ++k) scene.quats.push_back(Between(3 + k, i, -1.0f, 1.0f));
    for (int k = 0; k < 2; ++k) {
      const float log_pixels =
          Between(7 + k, i, std::log(shape.min_pixels), std::log(shape.max_pixels));
      scene.log_scales.push_back(log_pixels + std::log(std::fabs(z) + 0.5f) - std::log(focal));
    }
    scene.logit_opacities.push_back(Between(9, i, -4.0f, 3.0f));
    for (int k = 0; k < 3 * scene.num_sh; ++k) {
      scene.sh.push_back(Between(10 + k, i, -1.0f, 1.0f) * (k < 3 ? 1.0f : 0.2f));
    }
    scene.alive.push_back(1);
  }
  if (shape.has_oddities) MakeOdd(scene);
  return scene;
}

struct Request {
  int maps = kAll;
  bool with_contributions = false, is_deterministic = true, with_probe = true;
  int64_t kept_bytes = 0;  // in which the forward call leaves work for the backward call
  int64_t band_pairs = int64_t(1) << 24;
};

// Results of all views, one behind the other; empty where they were not asked for.
struct Maps {
  std::vector<float> color, transmittance, depth_sum, median_depth, normal_sum, plane_sum,
      distortion, contributions;
  std::vector<int32_t> last, median_index, status;
  std::vector<uint8_t> kept;
};
struct Gradients {
  std::vector<float> means, quats, log_scales, logit_opacities, sh, camera, probe;
};

// Of a map: as if a loss depended on it.
inline std::vector<float> Cotangent(uint32_t stream, int64_t count) {
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = Between(100 + stream, i, -1.0f, 1.0f);
  return values;
}

}  // namespace program
}  // namespace cosurfgs
