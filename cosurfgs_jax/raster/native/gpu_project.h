// What one GPU thread does for one surfel: projection, and the way back. The same as project_kernels.cc for one lane.
//
// Bodies (here and in gpu_bin.h, gpu_blend.h) are structures with a function Run and no knowledge of CUDA, so that a test can
// run the whole pipeline on the host (tests/native/). Run(args, i) is one thread's work of a grid of independent threads;
// Run(block, args, i) is a whole block's, written in phases (see cuda_device.h for what a block offers).
#pragma once

#include <string.h>

#include "raster.h"
#include "scalar.h"
// After scalar.h, whose functions its templates call.
#include "surfel_math.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {

constexpr uint32_t kHiddenKey = 0xffffffffu;  // sorts behind every depth

struct ViewArgs {
  const float *camera_from_world, *intrinsics;  // of the first view
  int width, height;
  float near;
  bool is_orthographic;
  View* views;
};

// The cameras are operands and lie in device memory; what the kernels need of them is made there.
struct MakeViews {
  using Args = ViewArgs;
  COSURFGS_FN static void Run(const Args& args, int64_t i) {
    args.views[i] = MakeView(args.camera_from_world + 16 * i, args.intrinsics + 9 * i, args.width, args.height, args.near,
                             args.is_orthographic);
  }
};

COSURFGS_FN void LoadSurfel(const Surfels& surfels, int64_t id, SurfelParams<float>& out) {
  for (int i = 0; i < 3; ++i) out.mean[i] = surfels.means[3 * id + i];
  for (int i = 0; i < 4; ++i) out.quat[i] = surfels.quats[4 * id + i];
  for (int i = 0; i < 2; ++i) out.log_scale[i] = surfels.log_scales[2 * id + i];
  out.logit_opacity = surfels.logit_opacities[id];
  const float* sh = surfels.sh + id * surfels.num_sh * 3;
  for (int i = 0; i < 3 * (surfels.sh_degree + 1) * (surfels.sh_degree + 1); ++i) out.sh[i] = sh[i];
}

// Whether all is finite, the lengths are sane and the quaternion is not zero (reference.py, _is_valid).
COSURFGS_FN bool IsValid(const SurfelParams<float>& s, int num_sh) {
  float sum = s.logit_opacity * 0.0f, length = 0.0f, norm2 = 0.0f;  // sum: 0, or NaN as soon as one value is not finite
  for (int i = 0; i < 3; ++i) {
    sum += s.mean[i] * 0.0f;
    length = Max(fabsf(s.mean[i]), length);
  }
  for (int i = 0; i < 4; ++i) norm2 += s.quat[i] * s.quat[i];
  sum += norm2 * 0.0f;
  for (int i = 0; i < 2; ++i) {
    sum += s.log_scale[i] * 0.0f;
    length = Max(Exp(s.log_scale[i]), length);
  }
  for (int i = 0; i < num_sh; ++i) sum += s.sh[i] * 0.0f;
  return sum <= 0.0f && norm2 > 0.0f && length <= kMaxLength;
}

// The pixels whose centres lie in [low, high], clipped to [0, size). False if there are none.
COSURFGS_FN bool PixelRange(float low, float high, int size, int16_t& first, int16_t& last) {
  const float begin = Max(ceilf(low - 0.5f), 0.0f), end = Min(floorf(high - 0.5f), float(size - 1));
  if (!(begin <= end)) return false;
  first = int16_t(begin);
  last = int16_t(end);
  return true;
}

struct ProjectArgs {
  Surfels surfels;
  const View* view;
  Record* records;
  uint32_t* keys;  // the bits of camera z, or kHiddenKey
  int32_t* ids;    // 0, 1, 2 ...: what is sorted along
  int32_t* num_invalid;
};

struct ProjectSurfel {
  using Args = ProjectArgs;
  COSURFGS_FN static void Run(const Args& args, int64_t id) {
    args.ids[id] = int32_t(id);
    args.keys[id] = kHiddenKey;
    if (!args.surfels.alive[id]) return;
    const View& view = *args.view;
    SurfelParams<float> params;
    LoadSurfel(args.surfels, id, params);
    if (!IsValid(params, 3 * (args.surfels.sh_degree + 1) * (args.surfels.sh_degree + 1))) {
      AtomicAdd(args.num_invalid, 1);
      return;
    }
    Pose<float> pose;
    ComputePose(params, view, pose);
    const float z = pose.p[2];
    if (!(z > view.near)) return;
    Record record;
    Project(params, view, args.surfels.sh_degree, pose, record.s);
    // alpha = opacity exp(-sigma / 2) >= 1/255 where sigma <= 2 log(255 opacity).
    const float cutoff = 2.0f * logf(record.s.opacity / kMinAlpha);
    if (!(cutoff >= 0.0f)) return;
    Bounds<float> bounds;
    ComputeBounds(pose, record.s, cutoff, bounds);
    if (!PixelRange(bounds.x0, bounds.x1, view.width, record.box.x0, record.box.x1)) return;
    if (!PixelRange(bounds.y0, bounds.y1, view.height, record.box.y0, record.box.y1)) return;
    record.cutoff = cutoff + 1e-3f;  // a margin: the exact test is on alpha
    record.may_be_near = !(bounds.min_z >= view.near);
    args.records[id] = record;
    uint32_t key;  // positive floats sort like their bits
    memcpy(&key, &z, sizeof(key));
    args.keys[id] = key;
  }
};

struct ProjectBackwardArgs {
  Surfels surfels;
  const View* view;
  const uint32_t* keys;
  const float* sums;  // per surfel kColorGradient or kAllGradient numbers
  int row_size;
  SurfelGradients out;
  double* camera_parts;  // 12 per block
};

// A block of surfels: adds their gradients to the outputs, and the sum of their camera gradients to camera_parts.
struct ProjectBackwardBlock {
  using Args = ProjectBackwardArgs;
  static constexpr int kThreads = 128;
  static constexpr int kParts = 8;
  struct State {};
  struct Shared {
    float camera[kThreads][13];  // 12 and one more, which keeps the columns in different banks
    double sums[12][kParts];
  };

  COSURFGS_BLOCK_FN static void Surfel(const Args& args, int64_t id, float* camera) {
    SurfelParams<float> params, result;
    Pose<float> pose;
    Projected<float> forward, g;
    CameraGradient<float> g_camera;
    LoadSurfel(args.surfels, id, params);
    ComputePose(params, *args.view, pose);
    Project(params, *args.view, args.surfels.sh_degree, pose, forward);
    const float* row = args.sums + id * args.row_size;
    const bool has_geometry = args.row_size == kAllGradient;
    for (int i = 0; i < 3; ++i) {
      g.a[i] = row[kGradA + i];
      g.b[i] = row[kGradB + i];
      g.color[i] = row[kGradColor + i];
      g.m2[i] = has_geometry ? row[kGradM2 + i] : 0.0f;
      g.normal[i] = has_geometry ? row[kGradNormal + i] : 0.0f;
    }
    g.c = row[kGradC];
    g.center[0] = row[kGradCenter];
    g.center[1] = row[kGradCenter + 1];
    g.plane_distance = has_geometry ? row[kGradPlane] : 0.0f;
    g.opacity = row[kGradAlpha] * Reciprocal(forward.opacity);  // rows hold the gradient of log alpha
    ProjectVjp(params, *args.view, args.surfels.sh_degree, pose, forward, g, result, g_camera);
    const SurfelGradients& out = args.out;
    for (int i = 0; i < 3; ++i) out.means[3 * id + i] += result.mean[i];
    for (int i = 0; i < 4; ++i) out.quats[4 * id + i] += result.quat[i];
    for (int i = 0; i < 2; ++i) out.log_scales[2 * id + i] += result.log_scale[i];
    out.logit_opacities[id] += result.logit_opacity;
    float* sh = out.sh + id * args.surfels.num_sh * 3;
    for (int i = 0; i < 3 * (args.surfels.sh_degree + 1) * (args.surfels.sh_degree + 1); ++i) sh[i] += result.sh[i];
    if (out.probe) {
      for (int i = 0; i < 2; ++i) {
        out.probe[4 * id + i] += row[kGradCenter + i];
        out.probe[4 * id + 2 + i] += row[kGradAbsolute + i];
      }
    }
    for (int i = 0; i < 9; ++i) camera[i] = g_camera.rotation[i];
    for (int i = 0; i < 3; ++i) camera[9 + i] = g_camera.translation[i];
  }

  template <class Block>
  COSURFGS_BLOCK_FN static void Run(Block& block, const Args& args, int64_t index) {
    Shared& shared = block.shared();
    block.Each([&](int thread, State&) {
      const int64_t id = index * kThreads + thread;
      float* camera = shared.camera[thread];
      for (int i = 0; i < 12; ++i) camera[i] = 0.0f;
      if (id < args.surfels.num_surfels && args.keys[id] != kHiddenKey) Surfel(args, id, camera);
    });
    block.Each([&](int thread, State&) {
      if (thread >= 12 * kParts) return;
      const int number = thread / kParts, part = thread % kParts;
      double sum = 0;
      for (int i = part; i < kThreads; i += kParts) sum += shared.camera[i][number];
      shared.sums[number][part] = sum;
    });
    block.Each([&](int thread, State&) {
      if (thread >= 12) return;
      double sum = 0;
      for (int part = 0; part < kParts; ++part) sum += shared.sums[thread][part];
      args.camera_parts[12 * index + thread] = sum;
    });
  }
};

struct CameraSumArgs {
  const double* camera_parts;
  int64_t num_parts;
  float* camera_gradient;  // [4, 4]
};

// One block adds up the camera's gradient, in one order whatever the machine.
struct CameraSumBlock {
  using Args = CameraSumArgs;
  static constexpr int kThreads = 384;
  static constexpr int kPerNumber = kThreads / 12;
  struct State {};
  struct Shared {
    double sums[12][kPerNumber];
  };
  template <class Block>
  COSURFGS_BLOCK_FN static void Run(Block& block, const Args& args, int64_t) {
    Shared& shared = block.shared();
    block.Each([&](int thread, State&) {
      const int number = thread / kPerNumber, first = thread % kPerNumber;
      double sum = 0;
      for (int64_t part = first; part < args.num_parts; part += kPerNumber) sum += args.camera_parts[12 * part + number];
      shared.sums[number][first] = sum;
    });
    block.Each([&](int thread, State&) {
      if (thread >= 12) return;
      double sum = 0;
      for (int i = 0; i < kPerNumber; ++i) sum += shared.sums[thread][i];
      args.camera_gradient[thread < 9 ? 4 * (thread / 3) + thread % 3 : 4 * (thread - 9) + 3] = float(sum);
    });
  }
};

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
