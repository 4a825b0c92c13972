// The XLA custom calls for SSIM on the CPU.

#include <algorithm>
#include <vector>

#include "parallel_for.h"
#include "ssim.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace cosurfgs {
namespace {

using Image = ffi::Buffer<ffi::F32, 3>;
using Scalar = ffi::Buffer<ffi::F32, 0>;

// For the gradient a band computes 10 rows of the map more than it owns: with 32 rows a quarter of the work.
constexpr int64_t kMinBandRows = 32;

ffi::Error Ssim(ffi::ThreadPool pool, const Image& a, const Image& b, float* mean, float* gradient) {
  auto shape = a.dimensions();
  if (!std::equal(shape.begin(), shape.end(), b.dimensions().begin())) {
    return ffi::Error::InvalidArgument("ssim: expected two images of one shape [H,W,C]");
  }
  const int64_t height = shape[0], width = shape[1], channels = shape[2];
  if (height < 1 || width < 1 || channels < 1) {
    return ffi::Error::InvalidArgument("ssim: expected an image of at least one pixel and channel");
  }
  const float scale = static_cast<float>(1.0 / (static_cast<double>(height) * width * channels));

  Parallel parallel(pool);
  // Two bands per thread even out threads that are busy elsewhere.
  const int64_t wanted = parallel.max_threads() == 1 ? 1 : 2 * parallel.max_threads();
  const int64_t num_bands = std::clamp<int64_t>(height / kMinBandRows, 1, wanted);
  std::vector<double> row_sums(height);
  const int64_t scratch_floats = COSURFGS_DISPATCH(SsimScratchFloats, channels);
  parallel.For(num_bands, [&](int64_t band) {
    // Kept between calls: fresh memory costs more than the filter of a small image.
    static thread_local std::vector<float> scratch;
    if (static_cast<int64_t>(scratch.size()) < scratch_floats) scratch.resize(scratch_floats);
    COSURFGS_DISPATCH(SsimRows, a.typed_data(), b.typed_data(), height, width, channels, band * height / num_bands,
                      (band + 1) * height / num_bands, scale, scratch.data(), row_sums.data(), gradient);
  });
  double sum = 0;
  for (double row : row_sums) sum += row;
  *mean = static_cast<float>(sum * scale);
  return ffi::Error::Success();
}

ffi::Error SsimForward(ffi::ThreadPool pool, Image a, Image b, ffi::Result<Scalar> mean) {
  return Ssim(pool, a, b, mean->typed_data(), nullptr);
}

ffi::Error SsimBackward(ffi::ThreadPool pool, Image a, Image b, ffi::Result<Scalar> mean, ffi::Result<Image> gradient) {
  return Ssim(pool, a, b, mean->typed_data(), gradient->typed_data());
}

}  // namespace
}  // namespace cosurfgs

XLA_FFI_DEFINE_HANDLER_SYMBOL(CosurfgsSsimForward, cosurfgs::SsimForward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<cosurfgs::Image>()
                                  .Arg<cosurfgs::Image>()
                                  .Ret<cosurfgs::Scalar>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(CosurfgsSsimBackward, cosurfgs::SsimBackward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<cosurfgs::Image>()
                                  .Arg<cosurfgs::Image>()
                                  .Ret<cosurfgs::Scalar>()
                                  .Ret<cosurfgs::Image>());
