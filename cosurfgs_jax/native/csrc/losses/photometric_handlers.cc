// The XLA custom call for losses/photometric.h on the CPU.

#include "losses/photometric.h"

#include <algorithm>
#include <cmath>

#include "common/huge_pages.h"
#include "common/parallel_for.h"
#include "losses/photometric_operands.h"
#include "common/scratch.h"

namespace cosurfgs {
namespace {

constexpr int64_t kRowsPerTask = 16;
// A band computes 10 rows of SSIM's map more than it owns: with 32 rows a quarter of the work.
constexpr int64_t kMinBandRows = 32;

struct PhotometricScratch {
  Scratch<float> target, blended, weights;
  Scratch<PhotometricRowSums> sums;
};
struct BandScratch {
  Scratch<float> floats;
};

// Sums by row, then in the order of rows: the same bits whatever the threads do.
PhotometricRowSums Total(const PhotometricRowSums* rows, int64_t height) {
  PhotometricRowSums total{};
  for (int64_t y = 0; y < height; ++y) {
    const PhotometricRowSums& row = rows[y];
    total.weight += row.weight, total.num_counted += row.num_counted;
    total.similarity += row.similarity, total.difference += row.difference;
    total.squared += row.squared, total.light += row.light;
    for (int i = 0; i < 12; ++i) total.grad_transform[i] += row.grad_transform[i];
  }
  return total;
}

ffi::Error PhotometricLosses(ffi::ThreadPool pool, LossMap3 render, LossMap alpha,
                             LossMap transform, LossPhoto photo, LossMask mask,
                             ffi::Result<LossValues> losses, ffi::Result<LossMap3> grad_render,
                             ffi::Result<LossMap> grad_alpha, ffi::Result<LossMap> grad_transform,
                             float color_weight, float ssim_weight, float light_weight) {
  const std::string error = CheckOperands({render, alpha, transform, photo, mask},
                                          {losses, grad_render, grad_alpha, grad_transform});
  if (!error.empty()) return ffi::Error::InvalidArgument(error);
  const auto shape = photo.dimensions();
  const int64_t height = shape[0], width = shape[1], channels = shape[2], size = height * width;
  const bool has_mask = mask.element_count() > 0;
  AskForHugePages(grad_render);
  AskForHugePages(grad_alpha);
  Parallel parallel(pool);
  Borrowed<PhotometricScratch> work;
  PhotometricRowSums* sums = work->sums.Get(height);
  PhotometricCall call{};
  call.height = height, call.width = width, call.channels = channels;
  call.render = render.typed_data(), call.alpha = alpha.typed_data(),
  call.photo = photo.typed_data();
  call.mask = has_mask ? mask.typed_data() : nullptr;
  std::copy_n(transform.typed_data(), 12, call.transform);
  call.target = work->target.Get(3 * size);
  if (call.has_weights())
    call.blended = work->blended.Get(3 * size), call.weights = work->weights.Get(size);
  call.grad_render = grad_render->typed_data(), call.grad_alpha = grad_alpha->typed_data();
  parallel.For((height + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t band) {
    for (int64_t y = band * kRowsPerTask; y < std::min(height, (band + 1) * kRowsPerTask); ++y) {
      COSURFGS_DISPATCH(PrepareRow, call, y, &sums[y]);
    }
  });
  const double weight = Total(sums, height).weight;
  const double per_pixel = 1 / std::max(weight, 1.0), per_value = per_pixel / 3;
  call.color_scale = float(color_weight * per_value);
  call.ssim_scale = float(ssim_weight * per_value);
  call.light_scale = float(light_weight * per_pixel);
  // Two bands per thread even out threads that are busy elsewhere.
  const int64_t wanted = parallel.max_threads() == 1 ? 1 : 2 * parallel.max_threads();
  const int64_t num_bands = std::clamp<int64_t>(height / kMinBandRows, 1, wanted);
  const int64_t scratch_floats = COSURFGS_DISPATCH(PhotometricScratchFloats);
  parallel.For(num_bands, [&](int64_t band) {
    Borrowed<BandScratch> scratch;
    COSURFGS_DISPATCH(PhotometricRows, call, band * height / num_bands,
                      (band + 1) * height / num_bands, scratch->floats.Get(scratch_floats), sums);
  });
  const PhotometricRowSums total = Total(sums, height);
  // Where no pixel counts, the rounding of SSIM must not be all that is left.
  const double dissimilarity = weight > 0 ? 3 * double(size) - total.similarity : 0;
  losses->typed_data()[0] =
      float(color_weight * per_value * total.difference + ssim_weight * per_value * dissimilarity +
            light_weight * per_pixel * total.light);
  losses->typed_data()[1] = float(-10 * std::log10(total.squared / (3 * total.num_counted)));
  for (int i = 0; i < 12; ++i) grad_transform->typed_data()[i] = float(total.grad_transform[i]);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace cosurfgs

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    CosurfgsPhotometricLosses, cosurfgs::PhotometricLosses,
    cosurfgs::BindPhotometricLosses(xla::ffi::Ffi::Bind().Ctx<xla::ffi::ThreadPool>()));
