// A photograph with its render and a field of surfels for the program of checks, and what a
// training step makes of them.
#pragma once

#include <vector>

#include "gpu_scene.h"

namespace cosurfgs {
namespace program {

struct TrainingShape {
  int height, width, channels;  // of the photograph; the fourth channel holds weights
  bool has_mask;
  int64_t num_rows;  // of the field, one a surfel
  int row_floats;
};

struct TrainingResults {
  std::vector<float> losses, grad_render, grad_alpha, grad_transform;
  std::vector<float> values, mu, nu;
};

inline std::vector<float> Numbers(uint32_t stream, int64_t count, float low, float high) {
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = Between(200 + stream, i, low, high);
  return values;
}
inline std::vector<uint8_t> Bytes(uint32_t stream, int64_t count, int end) {
  std::vector<uint8_t> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = uint8_t(end * Uniform(200 + stream, i));
  return values;
}

}  // namespace program
}  // namespace cosurfgs
