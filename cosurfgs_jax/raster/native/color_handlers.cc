// The XLA custom call for the gradient of a colour transform on the CPU.

#include <vector>

#include "parallel_for.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace cosurfgs {
namespace {

using Image = ffi::Buffer<ffi::F32, 3>;
using Matrix = ffi::Buffer<ffi::F32, 2>;

constexpr int kSums = 12;
constexpr int64_t kRowsAtOnce = 16;

// One row: by_render = transform[:, :3]^T cotangent, and the twelve sums of cotangent times (r, g, b, 1).
void TransformRow(const float* render, const float* cotangent, const float* m, int64_t width, float* by_render, double* sums) {
  float s[kSums] = {};
  for (int64_t x = 0; x < width; ++x) {
    const float r = render[3 * x], g = render[3 * x + 1], b = render[3 * x + 2];
    const float cr = cotangent[3 * x], cg = cotangent[3 * x + 1], cb = cotangent[3 * x + 2];
    by_render[3 * x] = m[0] * cr + m[4] * cg + m[8] * cb;
    by_render[3 * x + 1] = m[1] * cr + m[5] * cg + m[9] * cb;
    by_render[3 * x + 2] = m[2] * cr + m[6] * cg + m[10] * cb;
    s[0] += cr * r, s[1] += cr * g, s[2] += cr * b, s[3] += cr;
    s[4] += cg * r, s[5] += cg * g, s[6] += cg * b, s[7] += cg;
    s[8] += cb * r, s[9] += cb * g, s[10] += cb * b, s[11] += cb;
  }
  for (int i = 0; i < kSums; ++i) sums[i] = s[i];
}

ffi::Error ColorBackward(ffi::ThreadPool pool, Image render, Image cotangent, Matrix transform, ffi::Result<Image> by_render,
                         ffi::Result<Matrix> by_transform) {
  const auto shape = render.dimensions();
  if (shape[2] != 3 || cotangent.element_count() != render.element_count() || transform.element_count() != kSums) {
    return ffi::Error::InvalidArgument("color: expected two images of one shape [H,W,3] and a transform [3,4]");
  }
  const int64_t height = shape[0], width = shape[1];
  // Sums by row, then in the order of rows: the same bits whatever the threads do.
  std::vector<double> sums(height * kSums);
  Parallel parallel(pool);
  parallel.For((height + kRowsAtOnce - 1) / kRowsAtOnce, [&](int64_t band) {
    for (int64_t y = band * kRowsAtOnce; y < std::min(height, (band + 1) * kRowsAtOnce); ++y) {
      TransformRow(render.typed_data() + 3 * width * y, cotangent.typed_data() + 3 * width * y, transform.typed_data(), width,
                   by_render->typed_data() + 3 * width * y, &sums[y * kSums]);
    }
  });
  double total[kSums] = {};
  for (int64_t y = 0; y < height; ++y) {
    for (int i = 0; i < kSums; ++i) total[i] += sums[y * kSums + i];
  }
  for (int i = 0; i < kSums; ++i) by_transform->typed_data()[i] = static_cast<float>(total[i]);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace cosurfgs

XLA_FFI_DEFINE_HANDLER_SYMBOL(CosurfgsColorBackward, cosurfgs::ColorBackward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<cosurfgs::Image>()
                                  .Arg<cosurfgs::Image>()
                                  .Arg<cosurfgs::Matrix>()
                                  .Ret<cosurfgs::Image>()
                                  .Ret<cosurfgs::Matrix>());
