// The kernels that project surfels, and the backward pass, vectorised over surfels.
// Compiled once per instruction set, into the namespace COSURFGS_VARIANT.

#include "raster/raster.h"
#include "common/vec.h"
// After common/vec.h, whose functions its templates call.
#include "raster/surfel_math.h"

#include <algorithm>

namespace cosurfgs {
namespace COSURFGS_VARIANT {
namespace {

// A field of kLanes surfels from JAX's array, transposed into vectors.
template <int kCount>
void GatherField(const float* array, const int64_t* ids, Vec (&numbers)[kCount]) {
  alignas(64) float buffer[kCount][kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < kCount; ++i) buffer[i][lane] = array[kCount * ids[lane] + i];
  }
  for (int i = 0; i < kCount; ++i) numbers[i] = Load(buffer[i]);
}

// kLanes surfels. Lanes past the end repeat the last surfel.
void Gather(const Surfels& surfels, const int64_t* ids, SurfelParams<Vec>& out) {
  ForEachField(surfels, out, [&](const char*, const float* array, auto& numbers) {
    GatherField(array, ids, numbers);
  });
  alignas(64) float sh[kMaxSh * 3][kLanes];
  const int num_sh = 3 * (surfels.sh_degree + 1) * (surfels.sh_degree + 1);
  for (int lane = 0; lane < kLanes; ++lane) {
    const float* source = surfels.sh + ids[lane] * surfels.num_sh * 3;
    for (int i = 0; i < num_sh; ++i) sh[i][lane] = source[i];
  }
  for (int i = 0; i < num_sh; ++i) out.sh[i] = Load(sh[i]);
}

// Adds one lane's numbers of a field to those of a surfel.
template <int kCount>
void AddLane(const Vec (&numbers)[kCount], int lane, float* array, int64_t id) {
  for (int i = 0; i < kCount; ++i) array[kCount * id + i] += numbers[i][lane];
}

// The pixels whose centres lie in [low, high], clipped to [0, size).
void PixelRange(float low, float high, int size, int16_t& first, int16_t& last) {
  const float begin = std::max(0.0f, std::ceil(low - 0.5f));
  const float end = std::min(float(size - 1), std::floor(high - 0.5f));
  if (begin <= end) {
    first = int16_t(begin);
    last = int16_t(end);
  } else {
    first = 1;
    last = 0;
  }
}

}  // namespace

void ProjectSurfels(const Surfels& surfels, const View& view, int64_t begin, int64_t end,
                    Record* records, float* depths, CullStatus* statuses) {
  const int num_sh = 3 * (surfels.sh_degree + 1) * (surfels.sh_degree + 1);
  int64_t ids[kLanes];
  int filled = 0;
  auto flush = [&](int count) {
    for (int lane = count; lane < kLanes; ++lane) ids[lane] = ids[count - 1];
    SurfelParams<Vec> params;
    Pose<Vec> pose;
    Projected<Vec> projected;
    Bounds<Vec> bounds;
    Gather(surfels, ids, params);
    ComputePose(params, view, pose);
    ProjectShape(params, view, pose, projected);
    ProjectColor(params, surfels.sh_degree, pose, projected);
    // alpha = opacity exp(-sigma / 2) >= 1/255 where sigma <= 2 log(255 opacity).
    alignas(64) float log_opacity[kLanes];
    Store(log_opacity, projected.opacity);
    for (float& x : log_opacity) x = 2.0f * std::log(x / kMinAlpha);
    const Vec cutoff = Load(log_opacity);
    ComputeBounds(view, pose, projected, cutoff, bounds);
    alignas(64) float is_valid[kLanes];
    Store(is_valid, Keep(And(IsValidShape(params), IsValidColor(params, num_sh)), Splat(1.0f)));
    // Projected<Vec> is a plain array of vectors, Projected<float> one of floats.
    constexpr int kFields = sizeof(Projected<float>) / sizeof(float);
    const Vec* fields = reinterpret_cast<const Vec*>(&projected);
    for (int lane = 0; lane < count; ++lane) {
      const int64_t id = ids[lane];
      Record& record = records[id];
      if (is_valid[lane] == 0.0f) {
        statuses[id] = CullStatus::kInvalid;
        continue;
      }
      const float z = pose.p[2][lane];
      if (!(z > view.near) || !(cutoff[lane] >= 0.0f)) continue;
      float* target = reinterpret_cast<float*>(&record.s);
      for (int i = 0; i < kFields; ++i) target[i] = fields[i][lane];
      record.cutoff = cutoff[lane] + 1e-3f;  // a margin: the exact test is on alpha
      PixelRange(bounds.x0[lane], bounds.x1[lane], view.width, record.box.x0, record.box.x1);
      PixelRange(bounds.y0[lane], bounds.y1[lane], view.height, record.box.y0, record.box.y1);
      record.may_be_near = !(bounds.min_z[lane] >= view.near);
      if (record.box.x0 > record.box.x1 || record.box.y0 > record.box.y1) continue;
      depths[id] = z;
      statuses[id] = CullStatus::kDrawn;
    }
  };
  for (int64_t id = begin; id < end; ++id) {
    statuses[id] = CullStatus::kHidden;
    if (!surfels.alive[id]) continue;
    ids[filled++] = id;
    if (filled == kLanes) {
      flush(kLanes);
      filled = 0;
    }
  }
  if (filled) flush(filled);
}

void ProjectBackward(const Surfels& surfels, const View& view, const int32_t* ids, int64_t begin,
                     int64_t end, const float* rows, int row_size, const SurfelGradients& out,
                     double* camera) {
  const int num_sh = 3 * (surfels.sh_degree + 1) * (surfels.sh_degree + 1);
  for (int64_t first = begin; first < end; first += kLanes) {
    const int count = int(std::min<int64_t>(kLanes, end - first));
    int64_t lane_ids[kLanes];
    alignas(64) float transposed[kAllGradient][kLanes] = {};
    for (int lane = 0; lane < kLanes; ++lane) {
      lane_ids[lane] = ids[first + std::min(lane, count - 1)];
      if (lane >= count) continue;
      const float* row = rows + (first + lane) * row_size;
      const int used = row_size == 16 ? kColorGradient : kAllGradient;
      for (int i = 0; i < used; ++i) transposed[i][lane] = row[i];
    }
    SurfelParams<Vec> params, result;
    Pose<Vec> pose;
    Projected<Vec> forward, g;
    CameraGradient<Vec> g_camera;
    Gather(surfels, lane_ids, params);
    ComputePose(params, view, pose);
    ProjectShape(params, view, pose, forward);
    ProjectColor(params, surfels.sh_degree, pose, forward);
    for (int i = 0; i < 3; ++i) {
      g.a[i] = Load(transposed[kGradA + i]);
      g.b[i] = Load(transposed[kGradB + i]);
      g.m2[i] = Load(transposed[kGradM2 + i]);
      g.color[i] = Load(transposed[kGradColor + i]);
      g.normal[i] = Load(transposed[kGradNormal + i]);
    }
    g.c = Load(transposed[kGradC]);
    g.center[0] = Load(transposed[kGradCenter]);
    g.center[1] = Load(transposed[kGradCenter + 1]);
    g.plane_distance = Load(transposed[kGradPlane]);
    g.opacity = Load(transposed[kGradAlpha]) *
                Reciprocal(forward.opacity);  // rows hold the gradient of log alpha
    ProjectVjp(params, view, surfels.sh_degree, pose, forward, g, result, g_camera);
    for (int lane = 0; lane < count; ++lane) {
      const int64_t id = lane_ids[lane];
      ForEachField(out, result, [&](const char*, float* array, const auto& numbers) {
        AddLane(numbers, lane, array, id);
      });
      float* sh = out.sh + id * surfels.num_sh * 3;
      for (int i = 0; i < num_sh; ++i) sh[i] += result.sh[i][lane];
      if (out.probe) {
        for (int i = 0; i < 2; ++i) {
          out.probe[4 * id + i] += transposed[kGradCenter + i][lane];
          out.probe[4 * id + 2 + i] += transposed[kGradAbsolute + i][lane];
        }
      }
      for (int i = 0; i < 9; ++i) camera[i] += g_camera.rotation[i][lane];
      for (int i = 0; i < 3; ++i) camera[9 + i] += g_camera.translation[i][lane];
    }
  }
}

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
