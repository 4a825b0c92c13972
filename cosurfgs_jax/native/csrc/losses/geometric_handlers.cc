// The XLA custom calls for losses/geometric_losses.h and for the plane depth on the CPU.

#include "losses/geometric_losses.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/parallel_for.h"
#include "common/scratch.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace cosurfgs {
namespace {

using Map = ffi::Buffer<ffi::F32, 2>;
using Map3 = ffi::Buffer<ffi::F32, 3>;
using Photo = ffi::Buffer<ffi::U8, 3>;
using Flags = ffi::Buffer<ffi::PRED, 2>;
using Flag = ffi::Buffer<ffi::PRED, 0>;
using Offset = ffi::Buffer<ffi::S32, 1>;
using Losses = ffi::Buffer<ffi::F32, 1>;

constexpr int64_t kRowsPerTask = 8;
// The middles of pixels are float32: above it they are no longer halves.
constexpr int64_t kMaxSide = int64_t(1) << 23;
constexpr float kLuma[3] = {0.299f / 255, 0.587f / 255, 0.114f / 255};

struct GeometricScratch {
  Scratch<float> gray, drawn_gray, neighbor_gray, pulls, lattice;
  Scratch<bool> flags;
  Scratch<double> sums;
  Scratch<MultiViewRowResult> rows;
};

template <class Function>
void ForRows(Parallel& parallel, int64_t height, Function fn) {
  parallel.For((height + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t band) {
    for (int64_t y = band * kRowsPerTask; y < std::min(height, (band + 1) * kRowsPerTask); ++y)
      fn(y);
  });
}

Pinhole PinholeOf(const Map& intrinsics) {
  const float* k = intrinsics.typed_data();
  return {k[0], k[4], k[2], k[5]};
}

void RotationOf(const Map& pose, float* rotation) {
  for (int i = 0; i < 9; ++i) rotation[i] = pose.typed_data()[i / 3 * 4 + i % 3];
}

// Where a fourth channel says that a pixel does not count, its brightness is kMaskedGray if that is
// asked for.
void ToGray(Parallel& parallel, const Photo& photo, bool is_masked, float* gray) {
  const auto shape = photo.dimensions();
  ForRows(parallel, shape[0], [&](int64_t y) {
    const uint8_t* pixel = photo.typed_data() + y * shape[1] * shape[2];
    for (int64_t x = 0; x < shape[1]; ++x, pixel += shape[2]) {
      const bool counts = !is_masked || shape[2] == 3 || pixel[3] > 127;
      gray[y * shape[1] + x] =
          counts ? kLuma[0] * pixel[0] + kLuma[1] * pixel[1] + kLuma[2] * pixel[2] : kMaskedGray;
    }
  });
}

// neighbor_from_view, and what takes pixels there: K' R K^-1 and K' t; in double, as world
// coordinates may be large.
void RelatePoses(const Map& view, const Map& neighbor, const Pinhole& other, MultiViewCall* call) {
  const float *a = view.typed_data(), *b = neighbor.typed_data();
  double rotation[3][3], translation[3];
  for (int i = 0; i < 3; ++i) {
    translation[i] = b[4 * i + 3];
    for (int j = 0; j < 3; ++j) {
      rotation[i][j] = 0;
      for (int k = 0; k < 3; ++k) rotation[i][j] += double(b[4 * i + k]) * a[4 * j + k];
    }
    for (int j = 0; j < 3; ++j) translation[i] -= rotation[i][j] * a[4 * j + 3];
  }
  const Pinhole& own = call->camera;
  for (int i = 0; i < 3; ++i) {
    const double focal = i == 0   ? other.fx
                         : i == 1 ? other.fy
                                  : 1.0,
                 center = i == 0   ? other.cx
                          : i == 1 ? other.cy
                                   : 0.0;
    double row[3];
    for (int j = 0; j < 3; ++j) {
      call->neighbor_rotation[3 * i + j] = float(rotation[i][j]);
      row[j] = focal * rotation[i][j] + center * rotation[2][j];
    }
    call->neighbor_translation[i] = float(translation[i]);
    call->patch.warp[3 * i] = float(row[0] / own.fx);
    call->patch.warp[3 * i + 1] = float(row[1] / own.fy);
    call->patch.warp[3 * i + 2] =
        float(row[2] - row[0] * own.cx / own.fx - row[1] * own.cy / own.fy);
    call->patch.epipole[i] = float(focal * translation[i] + center * translation[2]);
  }
}

double SingleView(Parallel& parallel, GeometricScratch& work, SingleViewCall call,
                  float* grad_depth, float* grad_normal) {
  const int64_t height = call.height, width = call.width, size = height * width;
  double* sums = work.sums.Get(height);
  ForRows(parallel, height, [&](int64_t y) {
    sums[y] = y == 0 || y == height - 1 ? 0 : COSURFGS_DISPATCH(SteepestRow, call.gray, width, y);
  });
  call.steepest = float(std::sqrt(*std::max_element(sums, sums + height)));
  float* pulls = work.pulls.Get(4 * size);
  ForRows(parallel, height, [&](int64_t y) {
    float* const row[4] = {pulls + y * width, pulls + size + y * width,
                           pulls + 2 * size + y * width, pulls + 3 * size + y * width};
    sums[y] = 0;
    if (y > 0 && y < height - 1) {
      sums[y] = COSURFGS_DISPATCH(SingleViewRow, call, y, row, grad_normal + 3 * y * width);
    } else {
      for (float* pull : row) std::memset(pull, 0, width * sizeof(float));
      std::memset(grad_normal + 3 * y * width, 0, 3 * width * sizeof(float));
    }
  });
  ForRows(parallel, height, [&](int64_t y) {
    COSURFGS_DISPATCH(GatherRow, pulls, height, width, y, grad_depth + y * width);
  });
  double total = 0;
  for (int64_t y = 0; y < height; ++y) total += sums[y];
  return total / double(size);
}

struct MultiViewSums {
  double geometric = 0, photometric = 0, fraction = 0;
};

MultiViewSums MultiView(Parallel& parallel, GeometricScratch& work, const MultiViewCall& call,
                        float geometric_weight, float photometric_weight, float* grad_depth,
                        float* grad_normal) {
  const int64_t rows = call.patch.rows, columns = call.patch.columns, size = rows * columns;
  float* floats = work.lattice.Get(8 * size);
  bool* flags = work.flags.Get(3 * size);
  MultiViewRowResult* results = work.rows.Get(rows);
  parallel.For(rows, [&](int64_t row) {
    const int64_t first = row * columns;
    results[row] = {floats + 3 * first,
                    floats + 3 * size + first,
                    floats + 4 * size + 3 * first,
                    flags + first,
                    flags + size + first,
                    flags + 2 * size + first,
                    floats + 7 * size + first,
                    0,
                    0,
                    0,
                    0};
    COSURFGS_DISPATCH(MultiViewRow, call, row, &results[row]);
  });
  // Sums by row, then in the order of rows: the same bits whatever the threads do.
  MultiViewSums sums;
  int64_t num_geometric = 0, num_photometric = 0;
  for (int64_t row = 0; row < rows; ++row) {
    sums.geometric += results[row].geometric, sums.photometric += results[row].photometric;
    num_geometric += results[row].num_geometric, num_photometric += results[row].num_photometric;
  }
  sums.geometric /= double(std::max<int64_t>(num_geometric, 1));
  sums.photometric /= double(std::max<int64_t>(num_photometric, 1));
  sums.fraction = double(num_geometric) / double(size);
  const float grad_geometric = geometric_weight / float(std::max<int64_t>(num_geometric, 1));
  const float grad_photometric = photometric_weight / float(std::max<int64_t>(num_photometric, 1));
  parallel.For(rows, [&](int64_t row) {
    COSURFGS_DISPATCH(SpreadRow, call, row, results[row], grad_geometric, grad_photometric,
                      grad_depth, grad_normal);
  });
  return sums;
}

ffi::Error GeometricLosses(ffi::ThreadPool pool, Map depth, Map3 normal, Map alpha, Photo photo,
                           Map mask, Map pose, Map intrinsics, Map photo_intrinsics, Offset origin,
                           Photo neighbor_photo, Map neighbor_depth, Map neighbor_pose,
                           Map neighbor_intrinsics, Map neighbor_depth_intrinsics, Flag is_used,
                           Offset offset, ffi::Result<Losses> losses, ffi::Result<Map> grad_depth,
                           ffi::Result<Map3> grad_normal, float single_view_weight,
                           float geometric_weight, float photometric_weight, int64_t stride,
                           int64_t dilation, int64_t radius, float noise_variance,
                           float max_reprojection, float max_dissimilarity, float plane_sigma) {
  const auto shape = photo.dimensions(), other = neighbor_photo.dimensions();
  const auto map = depth.dimensions(), other_map = neighbor_depth.dimensions();
  const int64_t height = map[0], width = map[1], size = height * width;
  const bool has_mask = mask.element_count() > 0, has_neighbor = neighbor_depth.element_count() > 0;
  if (dilation < 1 || shape[0] / dilation != height || shape[1] / dilation != width ||
      int64_t(normal.element_count()) != 3 * size || int64_t(alpha.element_count()) != size ||
      shape[2] < 3 || (has_mask && int64_t(mask.element_count()) != size) ||
      pose.element_count() != 16 || intrinsics.element_count() != 9 ||
      photo_intrinsics.element_count() != 9 || origin.element_count() != 2 ||
      neighbor_pose.element_count() != 16 || neighbor_intrinsics.element_count() != 9 ||
      neighbor_depth_intrinsics.element_count() != 9 || offset.element_count() != 2 ||
      losses->element_count() != 5 || grad_depth->element_count() != depth.element_count() ||
      grad_normal->element_count() != normal.element_count()) {
    return ffi::Error::InvalidArgument(
        "geometric_losses: operands do not fit the photograph's shape [H,W,C], of which maps have "
        "every dilation-th pixel");
  }
  const int64_t longest =
      std::max({shape[0], shape[1], other[0], other[1], other_map[0], other_map[1]});
  if (height < 3 || width < 3 || size > INT32_MAX || longest > kMaxSide || stride < 1 ||
      stride > std::min(height, width) || radius < 1 || radius > kMaxPatchRadius ||
      (has_neighbor && (other[0] < 2 || other[1] < 2 || other[2] < 3 ||
                        other[0] * other[1] > INT32_MAX || other_map[0] < 2 || other_map[1] < 2))) {
    return ffi::Error::InvalidArgument(
        "geometric_losses: expected images of 3x3 to 2^31 pixels with sides of at most 2^23, a "
        "stride of 1 to the shorter side of the maps, a radius of 1 to 5");
  }
  Parallel parallel(pool);
  Borrowed<GeometricScratch> work;
  float* photo_gray = work->gray.Get(shape[0] * shape[1]);
  ToGray(parallel, photo, false, photo_gray);
  const int64_t origin_y = std::clamp<int64_t>(origin.typed_data()[0], 0, dilation - 1);
  const int64_t origin_x = std::clamp<int64_t>(origin.typed_data()[1], 0, dilation - 1);
  const float* gray = photo_gray;
  if (dilation > 1) {
    float* drawn = work->drawn_gray.Get(size);
    ForRows(parallel, height, [&](int64_t y) {
      const float* row = photo_gray + (origin_y + y * dilation) * shape[1] + origin_x;
      for (int64_t x = 0; x < width; ++x) drawn[y * width + x] = row[x * dilation];
    });
    gray = drawn;
  }
  const float* mask_data = has_mask ? mask.typed_data() : nullptr;
  float *depth_gradient = grad_depth->typed_data(), *normal_gradient = grad_normal->typed_data();
  double single_view = 0;
  if (single_view_weight > 0) {
    SingleViewCall call{height,
                        width,
                        depth.typed_data(),
                        normal.typed_data(),
                        alpha.typed_data(),
                        gray,
                        mask_data,
                        {},
                        PinholeOf(intrinsics),
                        0,
                        single_view_weight / float(size)};
    RotationOf(pose, call.rotation);
    single_view = SingleView(parallel, *work, call, depth_gradient, normal_gradient);
  } else {
    std::memset(depth_gradient, 0, size * sizeof(float));
    std::memset(normal_gradient, 0, 3 * size * sizeof(float));
  }
  MultiViewSums sums;
  if (has_neighbor && is_used.typed_data()[0]) {
    float* neighbor_gray = work->neighbor_gray.Get(other[0] * other[1]);
    ToGray(parallel, neighbor_photo, true, neighbor_gray);
    const int32_t* start = offset.typed_data();
    MultiViewCall call{};
    call.width = width, call.stride = stride;
    call.offset_y = std::clamp<int64_t>(start[0], 0, stride - 1);
    call.offset_x = std::clamp<int64_t>(start[1], 0, stride - 1);
    call.depth_height = other_map[0], call.depth_width = other_map[1];
    call.patch = {photo_gray,
                  neighbor_gray,
                  shape[0],
                  shape[1],
                  other[0],
                  other[1],
                  height / stride,
                  width / stride,
                  stride * dilation,
                  origin_y + dilation * call.offset_y,
                  origin_x + dilation * call.offset_x,
                  int(radius),
                  {},
                  {},
                  0,
                  0,
                  0,
                  0,
                  noise_variance,
                  depth.typed_data(),
                  height,
                  width,
                  dilation,
                  origin_y,
                  origin_x,
                  plane_sigma};
    call.depth = depth.typed_data(), call.normal = normal.typed_data(), call.mask = mask_data;
    call.neighbor_depth = neighbor_depth.typed_data();
    call.camera = PinholeOf(photo_intrinsics);
    call.neighbor = PinholeOf(neighbor_depth_intrinsics);
    call.patch.fx = call.camera.fx, call.patch.fy = call.camera.fy, call.patch.cx = call.camera.cx,
    call.patch.cy = call.camera.cy;
    call.max_reprojection = max_reprojection, call.max_dissimilarity = max_dissimilarity;
    RotationOf(pose, call.rotation);
    RelatePoses(pose, neighbor_pose, PinholeOf(neighbor_intrinsics), &call);
    sums = MultiView(parallel, *work, call, geometric_weight, photometric_weight, depth_gradient,
                     normal_gradient);
  }
  const double parts[5] = {single_view_weight * single_view + geometric_weight * sums.geometric +
                               photometric_weight * sums.photometric,
                           single_view, sums.geometric, sums.photometric, sums.fraction};
  std::copy(parts, parts + 5, losses->typed_data());
  return ffi::Error::Success();
}

// `others` says that all other operands and results are as large as the sums.
ffi::Error CheckSums(const Map3& normal_sum, const Map& plane_sum, const Map& transmittance,
                     const Map& pose, const Map& intrinsics, bool others) {
  const size_t size = plane_sum.element_count();
  if (normal_sum.element_count() != 3 * size || transmittance.element_count() != size ||
      pose.element_count() != 16 || intrinsics.element_count() != 9 || !others) {
    return ffi::Error::InvalidArgument(
        "plane_depth: expected sums of one shape [H,W], a pose [4,4] and intrinsics [3,3], and "
        "cotangents and results like them");
  }
  return ffi::Error::Success();
}

PlaneDepthCall PlaneDepthOf(const Map3& normal_sum, const Map& plane_sum, const Map& transmittance,
                            const Map& pose, const Map& intrinsics, float min_alpha,
                            float min_cosine) {
  PlaneDepthCall call{plane_sum.dimensions()[1],
                      normal_sum.typed_data(),
                      plane_sum.typed_data(),
                      transmittance.typed_data(),
                      {},
                      PinholeOf(intrinsics),
                      min_alpha,
                      min_cosine};
  RotationOf(pose, call.rotation);
  return call;
}

ffi::Error PlaneDepth(ffi::ThreadPool pool, Map3 normal_sum, Map plane_sum, Map transmittance,
                      Map pose, Map intrinsics, ffi::Result<Map> plane_depth,
                      ffi::Result<Flags> is_valid, float min_alpha, float min_cosine) {
  const size_t size = plane_sum.element_count();
  const bool fits = plane_depth->element_count() == size && is_valid->element_count() == size;
  if (ffi::Error error = CheckSums(normal_sum, plane_sum, transmittance, pose, intrinsics, fits);
      error.failure())
    return error;
  const PlaneDepthCall call =
      PlaneDepthOf(normal_sum, plane_sum, transmittance, pose, intrinsics, min_alpha, min_cosine);
  Parallel parallel(pool);
  ForRows(parallel, plane_sum.dimensions()[0], [&](int64_t y) {
    COSURFGS_DISPATCH(PlaneDepthRow, call, y, plane_depth->typed_data() + y * call.width,
                      is_valid->typed_data() + y * call.width);
  });
  return ffi::Error::Success();
}

ffi::Error PlaneDepthBackward(ffi::ThreadPool pool, Map3 normal_sum, Map plane_sum,
                              Map transmittance, Map pose, Map intrinsics, Map cotangent,
                              ffi::Result<Map3> grad_normal, ffi::Result<Map> grad_plane,
                              ffi::Result<Map> grad_pose, float min_alpha, float min_cosine) {
  const size_t size = plane_sum.element_count();
  const bool fits = cotangent.element_count() == size && grad_normal->element_count() == 3 * size &&
                    grad_plane->element_count() == size && grad_pose->element_count() == 16;
  if (ffi::Error error = CheckSums(normal_sum, plane_sum, transmittance, pose, intrinsics, fits);
      error.failure())
    return error;
  const PlaneDepthCall call =
      PlaneDepthOf(normal_sum, plane_sum, transmittance, pose, intrinsics, min_alpha, min_cosine);
  const int64_t height = plane_sum.dimensions()[0], width = call.width;
  Parallel parallel(pool);
  Borrowed<GeometricScratch> work;
  double* sums = work->sums.Get(9 * height);
  ForRows(parallel, height, [&](int64_t y) {
    COSURFGS_DISPATCH(PlaneDepthBackwardRow, call, y, cotangent.typed_data() + y * width,
                      grad_normal->typed_data() + 3 * y * width,
                      grad_plane->typed_data() + y * width, sums + 9 * y);
  });
  for (int i = 0; i < 16; ++i) {
    double total = 0;
    if (i < 12 && i % 4 < 3) {
      for (int64_t y = 0; y < height; ++y) total += sums[9 * y + i / 4 * 3 + i % 4];
    }
    grad_pose->typed_data()[i] = float(total);
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace cosurfgs

XLA_FFI_DEFINE_HANDLER_SYMBOL(CosurfgsPlaneDepth, cosurfgs::PlaneDepth,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<cosurfgs::Map3>()
                                  .Arg<cosurfgs::Map>()
                                  .Arg<cosurfgs::Map>()
                                  .Arg<cosurfgs::Map>()
                                  .Arg<cosurfgs::Map>()
                                  .Ret<cosurfgs::Map>()
                                  .Ret<cosurfgs::Flags>()
                                  .Attr<float>("min_alpha")
                                  .Attr<float>("min_cosine"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(CosurfgsPlaneDepthBackward, cosurfgs::PlaneDepthBackward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<cosurfgs::Map3>()
                                  .Arg<cosurfgs::Map>()
                                  .Arg<cosurfgs::Map>()
                                  .Arg<cosurfgs::Map>()
                                  .Arg<cosurfgs::Map>()
                                  .Arg<cosurfgs::Map>()
                                  .Ret<cosurfgs::Map3>()
                                  .Ret<cosurfgs::Map>()
                                  .Ret<cosurfgs::Map>()
                                  .Attr<float>("min_alpha")
                                  .Attr<float>("min_cosine"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(CosurfgsGeometricLosses, cosurfgs::GeometricLosses,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<cosurfgs::Map>()
                                  .Arg<cosurfgs::Map3>()
                                  .Arg<cosurfgs::Map>()
                                  .Arg<cosurfgs::Photo>()   // photo
                                  .Arg<cosurfgs::Map>()     // mask
                                  .Arg<cosurfgs::Map>()     // pose
                                  .Arg<cosurfgs::Map>()     // intrinsics
                                  .Arg<cosurfgs::Map>()     // photo_intrinsics
                                  .Arg<cosurfgs::Offset>()  // origin
                                  .Arg<cosurfgs::Photo>()   // neighbor_photo
                                  .Arg<cosurfgs::Map>()     // neighbor_depth
                                  .Arg<cosurfgs::Map>()     // neighbor_pose
                                  .Arg<cosurfgs::Map>()     // neighbor_intrinsics
                                  .Arg<cosurfgs::Map>()     // neighbor_depth_intrinsics
                                  .Arg<cosurfgs::Flag>()
                                  .Arg<cosurfgs::Offset>()
                                  .Ret<cosurfgs::Losses>()
                                  .Ret<cosurfgs::Map>()
                                  .Ret<cosurfgs::Map3>()
                                  .Attr<float>("single_view_weight")
                                  .Attr<float>("geometric_weight")
                                  .Attr<float>("photometric_weight")
                                  .Attr<int64_t>("stride")
                                  .Attr<int64_t>("dilation")
                                  .Attr<int64_t>("radius")
                                  .Attr<float>("noise_variance")
                                  .Attr<float>("max_reprojection")
                                  .Attr<float>("max_dissimilarity")
                                  .Attr<float>("plane_sigma"));
