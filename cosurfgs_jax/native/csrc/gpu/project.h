// What one GPU thread does for one surfel: projection, and the backward pass. The same as
// raster/project_kernels.cc for one lane.
//
// Bodies (here and in gpu/binning.h, gpu/blend.h) are structures with a function Run and no
// knowledge of CUDA, so that a test can run the whole pipeline on the host (tests/native/).
// Run(args, i) is one thread's work of a grid of independent threads; Run(block, args, i) is a
// whole block's, written in phases (see gpu/cuda_device.h for what a block offers).
#pragma once

#include <string.h>

#include "common/floats.h"
#include "raster/raster.h"
#include "common/scalar.h"
// After common/scalar.h, whose functions its templates call.
#include "raster/surfel_math.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {

constexpr uint32_t kHiddenKey = 0xffffffffu;  // sorts behind every depth

struct ViewArgs {
  const float *camera_from_world, *intrinsics;  // of the first view
  int width, height;
  float near, low_pass;
  bool is_orthographic;
  View* views;
};

// The cameras are operands and lie in device memory; what the kernels need of them is made there.
struct MakeViews {
  using Args = ViewArgs;
  COSURFGS_FN static void Run(const Args& args, int64_t i) {
    args.views[i] = MakeView(args.camera_from_world + 16 * i, args.intrinsics + 9 * i, args.width,
                             args.height, args.near, args.low_pass, args.is_orthographic);
  }
};

// 4 numbers (or 2) at a multiple of their size, in one access.
constexpr int kVector = 4;
template <int kCount = kVector>
COSURFGS_FN void LoadVector(const float* source, float* target) {
  const auto floats = Floats<kCount>::Load(source);
  for (int i = 0; i < kCount; ++i) target[i] = floats[i];
}
COSURFGS_FN void StoreVector(const float* source, float* target) {
  Floats<kVector> floats;
  for (int i = 0; i < kVector; ++i) floats[i] = source[i];
  floats.Store(target);
}

// Whether rows of so many numbers begin at multiples of 16 bytes: the arrays do.
COSURFGS_FN bool HasVectorRows(int64_t numbers) { return numbers % kVector == 0; }

template <int kDegree>
constexpr int kShNumbers = 3 * (kDegree + 1) * (kDegree + 1);

// A surfel's numbers of a field.
template <int kCount>
COSURFGS_FN void LoadField(const float* array, int64_t id, float (&numbers)[kCount]) {
  if constexpr (kCount == kVector) {
    LoadVector(array + kCount * id, numbers);
  } else {
    for (int i = 0; i < kCount; ++i) numbers[i] = array[kCount * id + i];
  }
}

// All but the colour, which is five times as much.
COSURFGS_FN void LoadShape(const Surfels& surfels, int64_t id, SurfelParams<float>& out) {
  ForEachField(surfels, out, [&](const char*, const float* array, auto& numbers) {
    LoadField(array, id, numbers);
  });
}

// The degree is known to the compiler, so that the coefficients are registers and not an array in
// memory.
template <int kDegree>
COSURFGS_FN void LoadColor(const Surfels& surfels, int64_t id, SurfelParams<float>& out) {
  constexpr int kCount = kShNumbers<kDegree>, kWhole = kCount / kVector * kVector;
  const int64_t stride = surfels.num_sh * 3;
  const float* sh = surfels.sh + id * stride;
  if (HasVectorRows(stride)) {
    COSURFGS_UNROLL
    for (int i = 0; i < kWhole; i += kVector) LoadVector(sh + i, out.sh + i);
    COSURFGS_UNROLL
    for (int i = kWhole; i < kCount; ++i) out.sh[i] = sh[i];
  } else {
    COSURFGS_UNROLL
    for (int i = 0; i < kCount; ++i) out.sh[i] = sh[i];
  }
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
  uint32_t* keys;        // the bits of camera z, or kHiddenKey
  int32_t* ids;          // 0, 1, 2 ...: what is sorted along
  int32_t* num_invalid;  // null if nobody asks
};

// Where a surfel is seen comes first: the colour of hidden ones is only read where invalid ones are
// counted, whose definition (reference.py) asks for it.
template <int kDegree>
struct ProjectSurfel {
  using Args = ProjectArgs;

  // Everything of the record but the colour; false if no pixel can be hit.
  COSURFGS_FN static bool Place(const SurfelParams<float>& params, const View& view,
                                const Pose<float>& pose, Record& record) {
    if (!(pose.p[2] > view.near)) return false;
    ProjectShape(params, view, pose, record.s);
    // alpha = opacity exp(-sigma / 2) >= 1/255 where sigma <= 2 log(255 opacity).
    const float cutoff = 2.0f * logf(record.s.opacity / kMinAlpha);
    if (!(cutoff >= 0.0f)) return false;
    Bounds<float> bounds;
    ComputeBounds(view, pose, record.s, cutoff, bounds);
    record.cutoff = cutoff + 1e-3f;  // a margin: the exact test is on alpha
    record.may_be_near = !(bounds.min_z >= view.near);
    return PixelRange(bounds.x0, bounds.x1, view.width, record.box.x0, record.box.x1) &&
           PixelRange(bounds.y0, bounds.y1, view.height, record.box.y0, record.box.y1);
  }

  COSURFGS_FN static uint32_t Key(const Args& args, int64_t id) {
    if (!args.surfels.alive[id]) return kHiddenKey;
    SurfelParams<float> params;
    LoadShape(args.surfels, id, params);
    bool is_valid = IsValidShape(params), is_seen = false;
    Pose<float> pose;
    Record record;
    if (is_valid) {
      ComputePose(params, *args.view, pose);
      is_seen = Place(params, *args.view, pose, record);
      if (is_seen || args.num_invalid) {
        LoadColor<kDegree>(args.surfels, id, params);
        is_valid = IsValidColor(params, kShNumbers<kDegree>);
      }
    }
    if (!is_valid && args.num_invalid) AtomicAdd(args.num_invalid, 1);
    if (!is_valid || !is_seen) return kHiddenKey;
    ProjectColor(params, kDegree, pose, record.s);
    args.records[id] = record;
    uint32_t key;  // positive floats sort like their bits
    memcpy(&key, &pose.p[2], sizeof(key));
    return key;
  }

  COSURFGS_FN static void Run(const Args& args, int64_t id) {
    args.ids[id] = int32_t(id);
    args.keys[id] = Key(args, id);
  }
};

// Gradients of the projections of surfels, row_size numbers each.
struct RowsOfSurfels {
  const float* rows;
  int row_size;             // kColorGradient or kAllGradient
  const int64_t* position;  // of a surfel's row, by id; null if it is the id itself
  COSURFGS_FN const float* operator()(int64_t id) const {
    return rows + (position ? position[id] : id) * row_size;
  }
};

struct ProjectBackwardArgs {
  Surfels surfels;
  const View* view;
  const uint32_t* keys;
  const Record* records;
  RowsOfSurfels rows;
  SurfelGradients out;
  bool is_first;         // of the views: nothing has been written to `out`
  double* camera_parts;  // 12 per block
};

// A block of surfels: writes their gradients, or adds them to those of the views before, and the
// sum of their camera gradients.
template <int kDegree>
struct ProjectBackwardBlock {
  using Args = ProjectBackwardArgs;
  static constexpr int kThreads = 128;
  static constexpr int kParts = 8;
  static constexpr int kNumbers = kShNumbers<kDegree>;
  static constexpr int kShVectors = (kNumbers + kVector - 1) / kVector;
  // An odd number of vectors, so that neighbouring threads meet different banks.
  static constexpr int kShRow = (kShVectors | 1) * kVector;
  struct State {
    float camera[12];
  };
  struct Shared {
    union {
      alignas(16) float sh[kThreads][kShRow];
      float camera[kThreads][13];  // 12, and one more likewise
    };
    double sums[12][kParts];
  };

  COSURFGS_FN static void LoadRow(const float* source, int row_size, float* row) {
    static_assert(kAllGradient % 2 == 0);
    if (row_size == kAllGradient) {
      COSURFGS_UNROLL
      for (int i = 0; i < kAllGradient; i += 2) LoadVector<2>(source + i, row + i);
    } else {
      COSURFGS_UNROLL
      for (int i = 0; i < kAllGradient; ++i) row[i] = i < kColorGradient ? source[i] : 0.0f;
    }
  }

  COSURFGS_FN static void FromRow(const float* row, Projected<float>& g) {
    for (int i = 0; i < 3; ++i) {
      g.a[i] = row[kGradA + i];
      g.b[i] = row[kGradB + i];
      g.color[i] = row[kGradColor + i];
      g.m2[i] = row[kGradM2 + i];
      g.normal[i] = row[kGradNormal + i];
    }
    g.c = row[kGradC];
    for (int i = 0; i < 2; ++i) g.center[i] = row[kGradCenter + i];
    g.plane_distance = row[kGradPlane];
    g.opacity = row[kGradAlpha];  // of log alpha
  }

  COSURFGS_FN static void Write(bool is_first, float value, float* target) {
    *target = is_first ? value : *target + value;
  }
  COSURFGS_FN static void WriteVector(bool is_first, float* values, float* target) {
    if (!is_first) {
      float before[kVector];
      LoadVector(target, before);
      for (int i = 0; i < kVector; ++i) values[i] += before[i];
    }
    StoreVector(values, target);
  }
  // A surfel's numbers of a field.
  template <int kCount>
  COSURFGS_FN static void WriteField(bool is_first, float (&numbers)[kCount], float* array,
                                     int64_t id) {
    if constexpr (kCount == kVector) {
      WriteVector(is_first, numbers, array + kCount * id);
    } else {
      for (int i = 0; i < kCount; ++i) Write(is_first, numbers[i], array + kCount * id + i);
    }
  }

  // The gradients of one surfel, those of its colour into sh; of a hidden one they are zero.
  COSURFGS_BLOCK_FN static void Surfel(const Args& args, int64_t id, float* camera, float* sh) {
    SurfelParams<float> params, result{};
    float probe[4] = {};
    const bool is_seen = args.keys[id] != kHiddenKey;
    if (is_seen) {
      Pose<float> pose;
      Projected<float> forward, g;
      CameraGradient<float> g_camera;
      LoadShape(args.surfels, id, params);
      LoadColor<kDegree>(args.surfels, id, params);
      float row[kAllGradient];
      LoadRow(args.rows(id), args.rows.row_size, row);
      FromRow(row, g);
      for (int i = 0; i < 2; ++i) {
        probe[i] = row[kGradCenter + i];
        probe[2 + i] = row[kGradAbsolute + i];
      }
      ComputePose(params, *args.view, pose);
      ProjectShape(params, *args.view, pose, forward);
      for (int i = 0; i < 3; ++i) forward.color[i] = args.records[id].s.color[i];
      g.opacity = g.opacity * Reciprocal(forward.opacity);
      ProjectVjp(params, *args.view, kDegree, pose, forward, g, result, g_camera);
      for (int i = 0; i < 9; ++i) camera[i] = g_camera.rotation[i];
      for (int i = 0; i < 3; ++i) camera[9 + i] = g_camera.translation[i];
    }
    COSURFGS_UNROLL
    for (int i = 0; i < kShVectors * kVector; ++i) sh[i] = i < kNumbers ? result.sh[i] : 0.0f;
    const SurfelGradients& out = args.out;
    if (!is_seen && !args.is_first) return;
    ForEachField(out, result, [&](const char*, float* array, auto& numbers) {
      WriteField(args.is_first, numbers, array, id);
    });
    if (out.probe) WriteVector(args.is_first, probe, out.probe + 4 * id);
  }

  // Neighbouring threads write neighbouring numbers. With a surfel a thread every thread would
  // write to a line of its own.
  template <int kStep>
  COSURFGS_BLOCK_FN static void WriteColors(const Args& args, const Shared& shared, int64_t first,
                                            int count, int thread) {
    const int stride = int(args.surfels.num_sh) * 3, steps = stride / kStep;
    float* out = args.out.sh + first * stride;
    int row = thread / steps, step = thread % steps;
    const int more_rows = kThreads / steps, more_steps = kThreads % steps;
    while (row < count) {
      float values[kStep] = {};  // of coefficients beyond the degree
      float* target = out + row * stride + step * kStep;
      if (args.is_first || args.keys[first + row] != kHiddenKey) {
        if constexpr (kStep == kVector) {
          if (step < kShVectors) LoadVector(shared.sh[row] + step * kStep, values);
          WriteVector(args.is_first, values, target);
        } else {
          if (step < kNumbers) values[0] = shared.sh[row][step];
          Write(args.is_first, values[0], target);
        }
      }
      row += more_rows;
      step += more_steps;
      if (step >= steps) {
        step -= steps;
        ++row;
      }
    }
  }

  template <class Block>
  COSURFGS_BLOCK_FN static void Run(Block& block, const Args& args, int64_t index) {
    Shared& shared = block.shared();
    const int64_t first = index * kThreads, left = args.surfels.num_surfels - first;
    const int count = int(left < kThreads ? left : kThreads);
    block.Each([&](int thread, State& state) {
      state = State{};
      if (thread < count) Surfel(args, first + thread, state.camera, shared.sh[thread]);
    });
    block.Each([&](int thread, State&) {
      if (HasVectorRows(args.surfels.num_sh * 3)) {
        WriteColors<kVector>(args, shared, first, count, thread);
      } else {
        WriteColors<1>(args, shared, first, count, thread);
      }
    });
    block.Each([&](int thread, State& state) {
      for (int i = 0; i < 12; ++i) shared.camera[thread][i] = state.camera[i];
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
      for (int64_t part = first; part < args.num_parts; part += kPerNumber)
        sum += args.camera_parts[12 * part + number];
      shared.sums[number][first] = sum;
    });
    block.Each([&](int thread, State&) {
      if (thread >= 12) return;
      double sum = 0;
      for (int i = 0; i < kPerNumber; ++i) sum += shared.sums[thread][i];
      args.camera_gradient[thread < 9 ? 4 * (thread / 3) + thread % 3 : 4 * (thread - 9) + 3] =
          float(sum);
      if (thread < 4)
        args.camera_gradient[12 + thread] = 0.0f;  // the last row is no operand of the projection
    });
  }
};

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
